"""An operator's acts in a real browser, over a real server with two real sites."""

from __future__ import annotations

import importlib
import io
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.centre import accounts, open_centre
from server.centre.people import Doer
from server.control.pins import read_pins

playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright (popmi[dev])")
pytestmark = [pytest.mark.browser, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
LIGHT = {
    "strategy": "lowrank", "rounds": 300, "min_sites": 1,
    "model": {"backbone": "popmi_vit_micro", "image_size": 32, "lora": {"rank": 2, "train": "adapter"}},
}  # fmt: skip
"""Rounds of a second or two, and so many that none of the acts comes too late."""
LEFT_OUT, KEPT = "phantom_ruler", "phantom_slide"
SECONDS = 120_000
"""Milliseconds within which a real server does what was ordered, on a machine that does other things as well."""


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server with two sites on line, and an account of each role; its records and its centre are files, or there."""
    env: dict[str, str] = {}
    if request.param == "postgresql":
        env["POPMI_DATABASE"] = request.getfixturevalue("own_database")
    sys.path.insert(0, str(ROOT / "benchmarks" / "federation"))
    machine_of = importlib.import_module("machine")
    sites = {name: f"phantom:{name}" for name in (KEPT, LEFT_OUT)}
    with machine_of.Machine(tmp_path_factory.mktemp("acts"), sites, LIGHT, env=env) as machine:
        machine.set_up()
        machine.all_up()
        engine = open_centre(env.get("POPMI_DATABASE") or machine.home.folder / "centre.sqlite")
        for role in ("viewer", "operator"):
            accounts.add(engine, role, role, secret_of(role), Doer("root", "terminal"))
        engine.dispose()
        yield machine
    sys.path.remove(str(ROOT / "benchmarks" / "federation"))


def secret_of(role: str) -> str:
    return f"the {role} walks along the river"


@pytest.fixture
def sign_in(server: Any, browse: Callable[..., playwright.Page]) -> Callable[..., playwright.Page]:
    """Return a function that opens the pages as somebody of a role."""

    def enter(role: str, refusals: tuple[int, ...] = ()) -> playwright.Page:
        page = browse(f"http://127.0.0.1:{server.pages}/login", refusals=refusals)
        page.set_default_timeout(SECONDS)
        page.get_by_label("Name").fill(role)
        page.get_by_label("Password").fill(secret_of(role))
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(re.compile(r"/$"))
        return page

    return enter


def go(page: playwright.Page, server: Any, path: str) -> None:
    page.goto(f"http://127.0.0.1:{server.pages}{path}")


def answered(page: playwright.Page) -> str:
    """Wait on an order's page for its answer, without loading it again, and return it."""
    assert "/act/orders/" in page.url
    page.locator(".answer").wait_for(timeout=SECONDS)
    assert page.locator(".head .state").inner_text().strip() == "done", page.locator(".answer").inner_text()
    return page.locator(".answer").inner_text()


def act(page: playwright.Page, server: Any, path: str, button: str, **fields: str) -> str:
    """Open the page of an act, fill it in, give the order and return the answer."""
    go(page, server, path)
    for label, value in fields.items():
        page.locator(f"#{label}").fill(value)
    page.get_by_role("button", name=button).click()
    return answered(page)


def outcomes(server: Any, site: str) -> dict[int, str]:
    with server.record("first") as reader:
        return {
            row.server_round: row.outcome
            for row in reader.sites(reader.run(name="first").id)
            if row.site == site and row.phase == "train"
        }


def test_a_run_is_started_from_the_form_steered_and_its_model_pinned(server: Any, sign_in: Any) -> None:
    page = sign_in("operator")
    go(page, server, "/act/start")
    page.get_by_label("Rounds", exact=True).fill("200")
    page.get_by_label("Name (may be left empty)").fill("first")
    page.get_by_role("button", name="Check, and see what will happen").click()
    assert page.locator("table").inner_text().split()[-3:] == ["rounds", "300", "200"]
    page.get_by_role("button", name="Start this run").click()
    assert "run first is wanted" in answered(page)
    server.until(lambda: server.done("first") >= 1, "the first round", 600)

    told = act(page, server, f"/act/exclude?site={LEFT_OUT}", "Exclude the site", reason="labels", typed=LEFT_OUT)
    assert "left out from the next round on" in told
    server.until(lambda: "stopped" in outcomes(server, LEFT_OUT).values(), "a round without the site", 300)
    act(page, server, f"/act/include?site={LEFT_OUT}", "Include the site", typed=LEFT_OUT)
    server.until(lambda: list(outcomes(server, LEFT_OUT).values())[-1] == "ok", "a round with the site", 300)

    go(page, server, "/act")
    page.get_by_role("link", name="Stop the run").click()
    page.get_by_role("button", name="Stop it after this round").click()
    assert "run first rests" in answered(page)
    server.until(lambda: not any(run["state"] == "running" for run in server.status()["runs"]), "rest", 300, every=3.0)
    done = server.done("first")
    assert "goes on after its last round" in act(page, server, "/act/resume?run=first", "Go on with it")
    server.until(lambda: server.done("first") > done, "a further round", 600)
    act(page, server, "/act/stop?run=first", "Stop it after this round")

    assert "is pinned; sha256" in act(
        page, server, "/act/pin?run=first&round=1", "Pin this model", note="the first one"
    )
    assert read_pins(server.home)["first"].by == "operator"
    assert "the ONNX file is made" in act(page, server, "/act/onnx?run=first&round=1", "Make the file")
    assert (server.home.run_folder("first") / "models" / "round-001.onnx").exists()
    assert "has no pinned model" in act(page, server, "/act/unpin?run=first", "Unpin it")


def test_a_site_is_invited_let_in_by_its_fingerprint_and_revoked(server: Any, sign_in: Any) -> None:
    page = sign_in("operator", refusals=(422,))
    assert "the kit of bern is made" in act(page, server, "/act/invite", "Make the kit", site="bern")
    with page.expect_download() as download:
        page.get_by_role("link", name="Fetch the kit").click()
    kit = server.folder / "bern.zip"
    download.value.save_as(kit)
    assert "kit.json" in zipfile.ZipFile(io.BytesIO(kit.read_bytes())).namelist()
    home = server.site("bern").folder
    said = server.popmi("site", "enrol", str(kit), "--data", "phantom:phantom_polarised", "--home", str(home)).stdout
    read_out = re.search(r"SHA256:\S{43}", said).group(0)[-8:]

    go(page, server, "/act/confirm")
    page.get_by_label("File of the enrolment").set_input_files(home / "bern.enrolment.json")
    page.get_by_role("button", name="Show the fingerprint").click()
    assert page.locator(".fingerprint code").inner_text().endswith(read_out)
    page.locator("#read_out").fill("AAAAAAAA")
    page.get_by_role("button", name="They are the same").click()
    page.get_by_text("do not let this key in").wait_for()
    page.locator("#read_out").fill(read_out)
    page.get_by_role("button", name="They are the same").click()
    assert "bern is enrolled as node" in answered(page)

    go(page, server, "/act/revoke?site=bern")
    page.locator("#reason").fill("laptop stolen")
    page.locator("#typed").fill("berne")
    page.get_by_role("button", name="Revoke the key for good").click()
    page.get_by_text("Nothing was ordered.").wait_for()
    page.locator("#typed").fill("bern")
    page.get_by_role("button", name="Revoke the key for good").click()
    assert "bern is cut off" in answered(page)
    assert server.home.sites()["bern"].state == "revoked"

    go(page, server, "/audit?site=bern")
    page.locator("tbody").get_by_text("site.revoked").wait_for()
    assert page.locator("tbody").inner_text().count("operator") >= 3
    assert page.locator("main .banner.bad").count() == 0


def test_what_cannot_be_done_is_refused_with_the_keeper_s_reason(server: Any, sign_in: Any) -> None:
    page = sign_in("operator")
    go(page, server, "/act/unpin?run=nothing")
    page.get_by_role("button", name="Unpin it").click()
    page.locator(".answer").wait_for(timeout=SECONDS)
    assert page.locator(".head .state").inner_text().strip() == "refused"
    assert "no model of run nothing is pinned" in page.locator(".answer").inner_text()


def test_an_order_given_while_the_keeper_is_dead_is_carried_out_by_the_next_one(server: Any, sign_in: Any) -> None:
    page = sign_in("operator")
    go(page, server, f"/act/exclude?site={LEFT_OUT}")
    page.locator("#reason").fill("labels")
    page.locator("#typed").fill(LEFT_OUT)
    assert server.kill("keeper") is not None
    page.get_by_role("button", name="Exclude the site").click()
    assert "left out from the next round on" in answered(page)
    act(page, server, f"/act/include?site={LEFT_OUT}", "Include the site", typed=LEFT_OUT)


def test_a_viewer_sees_the_orders_and_no_act(server: Any, sign_in: Any) -> None:
    page = sign_in("viewer", refusals=(403,))
    go(page, server, "/act")
    page.get_by_text("Acts need the role operator").wait_for()
    assert page.locator("main a[href^='/act/start']").count() == 0
    go(page, server, "/act/stop?run=first")
    page.get_by_text("Not allowed").wait_for()

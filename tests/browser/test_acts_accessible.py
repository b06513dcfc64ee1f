"""The pages of acts by axe, in light, dark and on a phone: forms, what is wrong with them, confirmations and orders."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from popmi_core.deployment.enrolment import Enrolment
from server.centre import open_centre
from server.centre.board import kit_key, write_board
from server.centre.orders import decide, place, take

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python (popmi[dev])")
pytestmark = pytest.mark.browser
MODES = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
}
LONG = "site-" + "x" * 58
PLAN = {
    "project": "Melanoma (phantom)",
    "config": {"strategy": "fedprox", "rounds": 20, "local": {"objective": "proximal", "proximal_mu": 0.5}},
    "sites": ["msk", "rosendahl", LONG],
}


def faults(page: Any) -> list[str]:
    """Return what axe finds on a page whose folded parts are all open, and whether it scrolls sideways."""
    page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    found = axe.Axe().run(page).response["violations"]
    told = [
        f"{page.url} {item['id']}: {node['target']} {node['html'][:160]}" for item in found for node in item["nodes"]
    ]
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return told + ([f"{page.url} scrolls sideways: {wide} px"] if wide > 0 else [])


@pytest.fixture
def orders(federation: Any) -> dict[str, int]:
    """Orders of every state, by it."""
    engine = open_centre(federation.centre)
    write_board(engine, "plan", PLAN)
    write_board(engine, kit_key("oslo"), {"name": "oslo.zip", "base64": base64.b64encode(b"PK").decode()})
    made = {
        "taken": place(engine, "onnx", {"run": "melanoma-2", "round": 3}, who="lin", via="page"),
        "done": place(engine, "invite", {"site": "oslo"}, who="lin", via="page"),
        "refused": place(engine, "stop", {"run": "melanoma-3"}, who="lin", via="api"),
        "forgotten": place(
            engine, "exclude", {"site": LONG, "reason": "r" * 400}, who="lin", via="page", clock=lambda: 9.0
        ),
        "start": place(engine, "start", {"name": "trial", "config": {"rounds": 2}}, who="lin", via="page"),
    }
    take(engine)
    decide(engine, made["done"], "done", "the kit of oslo is made")
    decide(engine, made["refused"], "refused", "run melanoma-3 is not going. " + "w" * 120)
    engine.dispose()
    return made


def enrolment_file(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    text = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    path = folder / "oslo.enrolment.json"
    path.write_text(Enrolment(project="Melanoma (phantom)", site="oslo", public_key=text).model_dump_json())
    return path


@pytest.mark.parametrize("mode", MODES)
def test_no_page_of_acts_has_a_fault(federation: Any, orders: dict[str, int], mode: str, tmp_path: Path) -> None:
    page = federation.open("/act", role="operator", refusals=(422,), **MODES[mode])
    found = faults(page)
    kinds = ("stop?run=melanoma-3", "resume", "exclude?site=msk", "include", "revoke", "invite", "unpin",
             "pin?run=melanoma-2&round=3", "onnx?run=melanoma-2&round=3", "start", "confirm")  # fmt: skip
    for path in (*kinds, *(f"orders/{number}" for number in orders.values())):
        page.goto(f"{federation.pages.url}/act/{path}")
        found += faults(page)

    page.goto(f"{federation.pages.url}/act/exclude?site=msk")
    page.locator("#reason").fill("labels")
    page.locator("#typed").fill("another")
    page.get_by_role("button", name="Exclude the site").click()
    page.get_by_text("Nothing was ordered.").wait_for()
    found += faults(page)

    page.goto(f"{federation.pages.url}/act/start")
    page.get_by_label("Rounds", exact=True).fill("0")
    page.get_by_label("Further keys as TOML").fill("rounds = 3")
    page.get_by_role("button", name="Check, and see").click()
    page.locator("#wrong-toml").wait_for()
    found += faults(page)
    page.get_by_label("Rounds", exact=True).fill("5")
    page.get_by_label("Further keys as TOML").fill("[local]\nproximal_mu = 0.25")
    page.get_by_role("button", name="Check, and see").click()
    page.get_by_role("button", name="Start this run").wait_for()
    found += faults(page)

    page.goto(f"{federation.pages.url}/act/confirm")
    page.get_by_label("File of the enrolment").set_input_files(enrolment_file(tmp_path))
    page.get_by_role("button", name="Show the fingerprint").click()
    page.locator("#read_out").fill("AAAAAAAA")
    page.get_by_role("button", name="They are the same").click()
    page.locator("#wrong-read").wait_for()
    found += faults(page)
    assert not found, "\n".join(found)


def test_an_act_is_given_by_keyboard_alone(federation: Any, orders: dict[str, int]) -> None:
    page = federation.open("/act/revoke?site=msk", role="operator")
    page.locator("#site").focus()
    page.keyboard.press("Tab")
    page.keyboard.type("laptop stolen")
    page.keyboard.press("Tab")
    page.keyboard.type("msk")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Revoke the key for good"
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Revoke a site's key: msk").wait_for()
    assert "waiting" in page.locator(".head .state").inner_text()
    # It asks every second; the server ends before the browser does.
    page.close()

"""The page in a real browser while a run goes on."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from server.dashboard.report import write_report
from server.store import RunReader, RunWriter

pytestmark = pytest.mark.browser
Browse = Callable[..., Any]
SCRIPT = "<img src=x onerror=alert(1)><script>alert(2)</script>"


@contextmanager
def going_on(pages: Any, believable: ModuleType, name: str = "live", **changes: object) -> Iterator[RunWriter]:
    home = pages.runs / name
    home.mkdir()
    with RunWriter(home / "record.sqlite") as writer:
        believable.begin(writer, rounds=9, name=name, **changes)
        yield writer


def finished(pages: Any, believable: ModuleType, name: str = "done", **changes: object) -> None:
    home = pages.runs / name
    home.mkdir()
    believable.write_run(home / "record.sqlite", name=name, **changes)


def is_live(page: Any) -> None:
    page.wait_for_selector('#link[data-state="live"]')


def test_a_new_round_is_on_the_page_within_a_second_without_reload(
    pages: Any, browse: Browse, believable: ModuleType
) -> None:
    with going_on(pages, believable) as writer:
        believable.add_round(writer, 1)
        page = browse(f"{pages.url}/runs/live")
        is_live(page)
        page.evaluate("window.untouched = true")
        assert page.locator("#plot-auroc canvas").count() == 1
        took = []
        for number in (2, 3, 4):
            believable.add_round(writer, number)
            begun = time.monotonic()
            page.wait_for_selector(f"text={number} of 9 rounds")
            took.append(time.monotonic() - begun)
            page.wait_for_selector(f'#plot-auroc[data-rounds="{number}"]', state="attached")
        assert page.evaluate("window.untouched") is True
        assert page.locator("#plot-auroc canvas").count() == 1
    # the promise of the page; the watcher looks every 0.3 s
    assert max(took) < 1.0


def test_rounds_of_another_process_arrive(pages: Any, browse: Browse) -> None:
    page = browse(pages.url)
    page.wait_for_selector("text=No runs yet")
    is_live(page)
    from_elsewhere = [sys.executable, "tests/support/believable_run.py", str(pages.runs / "other"), "2", "0.5"]
    root = Path(__file__).parents[2]
    with subprocess.Popen(from_elsewhere, cwd=root, env={"PYTHONPATH": str(root)}):
        page.wait_for_selector("text=of 2 rounds")
        page.get_by_role("link", name="other").click()
        page.wait_for_selector("text=2 of 2 rounds")
        page.wait_for_selector(".now .state.good >> text=finished")


def test_a_real_run_is_watched_from_its_first_round_to_its_end(pages: Any, browse: Browse, tmp_path: Path) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text('rounds = 2\n[data]\nsource = "phantom"\nphantom_images = 60\n[model]\nimage_size = 32\n')
    page = browse(pages.url)
    is_live(page)
    command = [sys.executable, "-c", "from popmi_core.cli.main import app; app()", "simulate", str(config)]
    with subprocess.Popen([*command, "--out", str(pages.runs / "real")], stdout=subprocess.DEVNULL) as run:
        page.wait_for_selector("#runs >> text=of 2 rounds", timeout=120_000)
        page.get_by_role("link", name="real").click()
        page.wait_for_selector("text=2 of 2 rounds", timeout=120_000)
        page.wait_for_selector(".now >> text=finished", timeout=30_000)
        assert run.wait(timeout=60) == 0
    assert page.locator(".banner", has_text="Phantom data.").is_visible()
    assert page.locator("#plot-nll canvas").count() == 1
    assert page.locator("#rounds tbody tr").count() == 2


def test_a_lost_connection_is_said_and_comes_back_with_what_was_missed(
    pages: Any, browse: Browse, believable: ModuleType
) -> None:
    with going_on(pages, believable) as writer:
        believable.add_round(writer, 1)
        page = browse(f"{pages.url}/runs/live")
        is_live(page)
        assert pages.stop() == 0
        page.wait_for_selector("text=connection lost, trying again")
        assert page.locator("text=1 of 9 rounds").is_visible()
        believable.add_round(writer, 2)
        pages.start()
        is_live(page)
        page.wait_for_selector("text=2 of 9 rounds")


def test_a_frozen_server_is_noticed(pages: Any, browse: Browse, believable: ModuleType) -> None:
    import signal

    finished(pages, believable, rounds=1)
    page = browse(f"{pages.url}/runs/done")
    is_live(page)
    pages.process.send_signal(signal.SIGSTOP)
    try:
        page.wait_for_selector('#link[data-state="lost"]', timeout=20_000)
    finally:
        pages.process.send_signal(signal.SIGCONT)
    is_live(page)


def test_ctrl_c_ends_the_server_although_somebody_watches(pages: Any, browse: Browse, believable: ModuleType) -> None:
    finished(pages, believable, rounds=1)
    is_live(browse(f"{pages.url}/runs/done"))
    begun = time.monotonic()
    assert pages.stop() == 0
    # a watcher hears of the end within a look (0.3 s); three seconds would be uvicorn's impatience
    assert time.monotonic() - begun < 2.5


def test_degraded_is_never_green(pages: Any, browse: Browse, believable: ModuleType) -> None:
    with going_on(pages, believable) as writer:
        trouble = {(1, "msk"): ("quarantined", "3 NaN in head.weight")}
        believable.add_round(writer, 1, trouble=trouble)
        for where in ("/", "/runs/live"):
            page = browse(pages.url + where)
            page.wait_for_selector("text=site msk quarantined: 3 NaN in head.weight")
            assert page.locator(".state.warn", has_text="running, degraded").is_visible()
            assert page.locator(".state.good").count() == 0


def test_what_a_person_opened_stays_open(pages: Any, browse: Browse, believable: ModuleType) -> None:
    with going_on(pages, believable) as writer:
        believable.add_round(writer, 1)
        page = browse(f"{pages.url}/runs/live")
        is_live(page)
        page.locator("#table-auroc summary").click()
        believable.add_round(writer, 2)
        page.wait_for_selector("text=2 of 9 rounds")
        page.wait_for_selector("#table-auroc tbody tr >> nth=1")
        assert page.locator("#table-auroc").get_attribute("open") is not None
        assert page.locator("#table-auroc tbody tr").count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_sees_everything_without_scrolling_sideways(
    pages: Any, browse: Browse, believable: ModuleType, scheme: str
) -> None:
    finished(pages, believable, rounds=6)
    for where in ("/", "/runs/done", "/runs/done?split=test"):
        page = browse(pages.url + where, viewport={"width": 360, "height": 740}, color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_dark_and_light_follow_the_system(pages: Any, browse: Browse, believable: ModuleType) -> None:
    finished(pages, believable, rounds=2)
    grounds = {}
    for scheme in ("light", "dark"):
        page = browse(f"{pages.url}/runs/done", color_scheme=scheme)
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        grounds[scheme] = sum(int(part) for part in colour[4:-1].split(","))
    # sums of red, green and blue, 0 to 765
    assert grounds["light"] > 700
    assert grounds["dark"] < 120


def test_everything_is_reached_by_keyboard(pages: Any, browse: Browse, believable: ModuleType) -> None:
    finished(pages, believable, rounds=4)
    page = browse(pages.url)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    assert page.url.endswith("#content")
    page.locator("#runs tbody a").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/done")
    page.locator("#table-auroc summary").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#table-auroc table")
    page.locator("button.cell.failed").focus()
    page.keyboard.press("Enter")
    assert "out of memory on the device" in page.locator(".why:popover-open").inner_text()
    page.keyboard.press("Escape")
    assert page.locator(".why:popover-open").count() == 0
    # wide tables scroll by keyboard: each is a focusable region with a name
    assert page.locator(".scroll:not([tabindex='0'][aria-label])").count() == 0


def test_a_script_in_a_name_is_text(pages: Any, browse: Browse, believable: ModuleType) -> None:
    with going_on(pages, believable, sites=(SCRIPT, "b"), classes=(SCRIPT,)) as writer:
        believable.add_round(writer, 1, sites=(SCRIPT, "b"), trouble={(1, "b"): ("failed", SCRIPT)})
        writer.record_match(1, SCRIPT, gains={SCRIPT: 0.1})
        page = browse(f"{pages.url}/runs/live")
        is_live(page)
        believable.add_round(writer, 2, sites=(SCRIPT, "b"))
        page.wait_for_selector("text=2 of 9 rounds")
        assert page.locator("img[src=x]").count() == 0
        assert page.locator("#rounds").is_visible()


def test_a_record_that_breaks_and_mends_is_said_in_place(pages: Any, browse: Browse, believable: ModuleType) -> None:
    finished(pages, believable, rounds=1)
    record = pages.runs / "done" / "record.sqlite"
    whole = record.read_bytes()
    page = browse(f"{pages.url}/runs/done")
    is_live(page)
    record.write_bytes(b"garbage " * 1000)
    page.wait_for_selector("text=The record cannot be read.")
    record.write_bytes(whole)
    page.wait_for_selector("text=1 of 1 rounds")


def test_the_report_opens_offline(
    pages: Any, browse: Browse, believable: ModuleType, tmp_path: Path, chromium: Any
) -> None:
    finished(pages, believable, rounds=5)
    with RunReader(pages.runs / "done" / "record.sqlite") as reader:
        path = write_report(reader, reader.run().id, tmp_path / "report.html")
    page = browse(path.as_uri(), offline=True, java_script_enabled=False, viewport={"width": 390, "height": 800})
    # ten curves, two of the rounds, three of turned images, the reliability diagram
    assert page.locator("svg.drawn").count() == 16
    box = page.locator("svg.drawn").first.bounding_box()
    assert box is not None
    assert box["width"] > 250
    assert page.locator(".state.good").first.is_visible()


def test_tables_are_there_without_scripts(pages: Any, browse: Browse, believable: ModuleType) -> None:
    finished(pages, believable, rounds=2)
    page = browse(f"{pages.url}/runs/done", java_script_enabled=False)
    page.locator("#table-auroc summary").click()
    page.locator("#table-auroc a").click()
    assert page.locator("table tbody tr").count() == 2


def test_many_viewers_hear_of_the_same_round(pages: Any, browse: Browse, believable: ModuleType) -> None:
    with going_on(pages, believable) as writer:
        believable.add_round(writer, 1)
        watching = [browse(f"{pages.url}/runs/live") for _ in range(4)]
        for page in watching:
            is_live(page)
        adding = threading.Thread(target=believable.add_round, args=(writer, 2))
        adding.start()
        for page in watching:
            page.wait_for_selector("text=2 of 9 rounds")
        adding.join()

"""What is new on a run's page, in a real browser: toggling sites, looking at one round, reasons a click away."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from server.store import RunWriter

pytestmark = pytest.mark.browser
Browse = Callable[..., Any]


@pytest.fixture
def done(pages: Any, believable: ModuleType) -> str:
    home = pages.runs / "done"
    home.mkdir()
    believable.write_run(home / "record.sqlite", name="done", rounds=4)
    return f"{pages.url}/runs/done"


def drawn(page: Any, name: str = "auroc") -> None:
    page.wait_for_selector(f"#plot-{name} canvas")


def legend(page: Any, name: str = "auroc") -> list[str]:
    return page.locator(f"#plot-{name} .u-legend .u-series:not(.u-off) .u-label").all_inner_texts()


def test_sites_are_hidden_and_lifted_out_by_keyboard_and_the_worst_stays(done: str, browse: Browse) -> None:
    page = browse(done)
    drawn(page)
    box = page.get_by_role("checkbox", name="msk", exact=True)
    box.focus()
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelectorAll('#plot-auroc .u-legend .u-off').length === 1")
    assert "msk" not in legend(page)
    # The worst site cannot be hidden.
    page.get_by_role("button", name="None but global").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('#plot-auroc .u-legend .u-off').length === 4")
    assert set(legend(page)[1:]) == {"global", "vienna_dias (worst)"}
    page.get_by_label("Highlight").select_option("rosendahl")
    page.get_by_role("button", name="All", exact=True).click()
    page.wait_for_function("document.querySelectorAll('#plot-auroc .u-legend .u-off').length === 0")


def test_what_was_hidden_stays_hidden_when_a_round_comes(pages: Any, browse: Browse, believable: ModuleType) -> None:
    home = pages.runs / "live"
    home.mkdir()
    with RunWriter(home / "record.sqlite") as writer:
        believable.begin(writer, rounds=9, name="live")
        believable.add_round(writer, 1)
        believable.add_round(writer, 2)
        page = browse(f"{pages.url}/runs/live")
        drawn(page)
        page.get_by_role("checkbox", name="msk", exact=True).uncheck()
        page.locator("#match-angle").check()
        page.locator("#diary summary").click()
        believable.add_round(writer, 5)
        page.wait_for_selector('#plot-auroc[data-rounds="3"]', state="attached")
        page.wait_for_selector("text=Round 5. Gain")
        assert "msk" not in legend(page)
        assert page.locator("#match-angle").is_checked()
        assert page.locator("#diary").get_attribute("open") is not None
        assert page.get_by_role("checkbox", name="msk", exact=True).is_checked() is False


def test_matching_shows_one_measure_at_a_time(done: str, browse: Browse) -> None:
    page = browse(done)
    assert page.locator(".show-gain").is_visible()
    assert page.locator(".show-moved").is_hidden()
    page.locator("#match-gain").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator(".show-gain").is_hidden()
    assert "of 192" in page.locator(".show-moved").inner_text()


def test_a_reason_is_a_click_away_also_without_scripts(done: str, browse: Browse) -> None:
    for scripts in (True, False):
        page = browse(done, java_script_enabled=scripts)
        page.locator("button.cell.late").click()
        assert "no answer within 60 s" in page.locator(".why:popover-open").inner_text()
        page.locator(".why:popover-open").get_by_role("button", name="Close").click()
        assert page.locator(".why:popover-open").count() == 0


def test_one_round_is_looked_at_without_scripts(done: str, browse: Browse) -> None:
    page = browse(done, java_script_enabled=False)
    page.locator("#picked").fill("2")
    page.get_by_role("button", name="Show").click()
    assert "Round 2. Gain" in page.content()
    page.get_by_role("link", name="Next round").click()
    assert "Round 3. Gain" in page.content()
    page.get_by_role("link", name="Follow the newest").click()
    assert "Round 4. Gain" in page.content()


def test_every_round_at_a_glance_opens_in_place(done: str, browse: Browse) -> None:
    page = browse(done)
    page.locator("#attendance summary").click()
    page.wait_for_selector("#attendance svg.ribbon")
    assert page.locator("#attendance tbody tr").count() == 5
    page.locator("#notes-4 summary").click()
    page.wait_for_selector("#notes-4 .pair")


def test_hidden_cells_say_so_in_words(done: str, browse: Browse) -> None:
    page = browse(done)
    assert page.locator("#part-calibration .veiled").first.inner_text() == "hidden"
    page.locator("#part-calibration nav").get_by_role("link", name="msk").click()
    page.wait_for_url("**scope=msk**")
    assert "msk, validation images" in page.locator("#part-calibration").inner_text()


@pytest.mark.parametrize("width", [390, 1280])
def test_a_run_of_twenty_sites_fits(pages: Any, browse: Browse, believable: ModuleType, width: int) -> None:
    sites = tuple(f"hospital-with-a-long-name-{number:02d}" for number in range(20))
    home = pages.runs / "many"
    home.mkdir()
    with RunWriter(home / "record.sqlite", heartbeat=0) as writer:
        believable.begin(writer, rounds=3, name="many", sites=sites)
        for number in (1, 2, 3):
            believable.add_round(writer, number, sites=sites, trouble={(2, sites[3]): ("failed", "no room")})
        writer.finish_run("finished")
    page = browse(f"{pages.url}/runs/many", viewport={"width": width, "height": 900})
    drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # A legend of twenty lines would be longer than its chart: all but global and worst are folded.
    shown = page.locator("#plot-auroc .u-legend .u-series").evaluate_all(
        "rows => rows.filter((row) => row.offsetParent).length"
    )
    assert shown == 3

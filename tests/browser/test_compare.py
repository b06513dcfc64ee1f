"""Runs are ticked on the list and laid side by side."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from server.store import RunWriter

pytestmark = pytest.mark.browser
Browse = Callable[..., Any]


@pytest.fixture
def two(pages: Any, believable: ModuleType) -> None:
    for name, changes in (("one", {}), ("two", {"strategy": "fedavg", "seed": 1})):
        (pages.runs / name).mkdir()
        believable.write_run(pages.runs / name / "record.sqlite", name=name, rounds=3, **changes)


@pytest.mark.usefixtures("two")
def test_ticked_runs_are_compared(pages: Any, browse: Browse) -> None:
    page = browse(pages.url)
    for name in ("one", "two"):
        page.get_by_role("checkbox", name=f"compare {name}").check()
    page.get_by_role("button", name="Compare the ticked runs").click()
    page.wait_for_selector("text=Compare 2 runs")
    page.wait_for_selector("#plot-auroc canvas")
    assert page.locator("#plot-auroc .u-legend").inner_text().count("one") == 1
    assert "fedavg" in page.locator("section:has(#settings)").inner_text()
    page.locator("#metric").select_option("ece")
    page.get_by_role("button", name="Show").click()
    page.wait_for_selector("#plot-ece canvas")
    assert page.locator(".plot").count() == 1
    page.locator("#table-ece summary").click()
    page.wait_for_selector("#table-ece table")


@pytest.mark.usefixtures("two")
def test_ticks_stay_when_the_list_changes(pages: Any, browse: Browse, believable: ModuleType) -> None:
    page = browse(pages.url)
    page.wait_for_selector('#link[data-state="live"]')
    page.get_by_role("checkbox", name="compare one").check()
    (pages.runs / "three").mkdir()
    believable.write_run(pages.runs / "three" / "record.sqlite", name="three", rounds=1)
    page.wait_for_selector("#runs >> text=three")
    assert page.get_by_role("checkbox", name="compare one").is_checked()


def test_a_comparison_follows_a_run_that_goes_on(pages: Any, browse: Browse, believable: ModuleType) -> None:
    (pages.runs / "done").mkdir()
    believable.write_run(pages.runs / "done" / "record.sqlite", name="done", rounds=2)
    (pages.runs / "live").mkdir()
    with RunWriter(pages.runs / "live" / "record.sqlite") as writer:
        believable.begin(writer, rounds=9, name="live")
        believable.add_round(writer, 1)
        page = browse(f"{pages.url}/compare?run=done&run=live")
        page.wait_for_selector("#plot-auroc canvas")
        for number in (2, 3):
            believable.add_round(writer, number)
        page.wait_for_selector('#plot-auroc[data-rounds="3"]', state="attached")
        page.wait_for_selector("text=3 of 9 rounds")


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_compares_without_scrolling_sideways(pages: Any, browse: Browse, scheme: str) -> None:
    page = browse(f"{pages.url}/compare?run=one&run=two", viewport={"width": 390, "height": 800}, color_scheme=scheme)
    page.wait_for_selector("#plot-auroc canvas")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390

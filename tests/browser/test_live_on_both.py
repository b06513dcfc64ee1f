"""A run that goes on, on the pages that show it, with its record in a file and in PostgreSQL."""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any

import pytest

from server.store import RunWriter

pytestmark = pytest.mark.browser
BOTH = pytest.mark.parametrize("federation", ["sqlite", "postgresql"], indirect=True)


@BOTH
def test_a_new_round_reaches_the_list_and_the_run_without_reload(federation: Any, believable: ModuleType) -> None:
    database: Any = federation.centre
    if "://" not in str(database):
        (federation.runs / "live").mkdir()
        database = federation.runs / "live" / "record.sqlite"
    with RunWriter(database) as writer:
        believable.begin(writer, rounds=5, name="live")
        believable.add_round(writer, 1)
        page = federation.browse(f"{federation.pages.url}/")
        federation.sign_in(page, "viewer")
        page.wait_for_selector('#link[data-state="live"]')
        page.wait_for_selector("text=1 of 5 rounds")
        believable.add_round(writer, 2)
        page.wait_for_selector("text=2 of 5 rounds")
        page.get_by_role("link", name="live", exact=True).click()
        page.wait_for_selector('#link[data-state="live"]')
        page.wait_for_selector("#plot-auroc canvas")
        page.evaluate("window.untouched = true")
        took = []
        for number in (3, 4, 5):
            believable.add_round(writer, number)
            begun = time.monotonic()
            page.wait_for_selector(f"text={number} of 5 rounds")
            took.append(time.monotonic() - begun)
            page.wait_for_selector(f'#plot-auroc[data-rounds="{number}"]', state="attached")
        assert page.evaluate("window.untouched") is True
        # The promise of the page; the watcher looks every 0.3 s.
        assert max(took) < 1.0
        writer.finish_run("finished")
        page.wait_for_selector(".now .state.good >> text=finished")

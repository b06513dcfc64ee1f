"""Sites, models and the audit log in a real browser, over both databases and in both languages."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from server.centre import open_centre
from server.centre.board import read_board, write_board

pytestmark = pytest.mark.browser
BOTH = pytest.mark.parametrize("federation", ["sqlite", "postgresql"], indirect=True)
PHONE = {"width": 390, "height": 844}


@BOTH
def test_a_model_is_found_understood_and_fetched(federation: Any, tmp_path: Path) -> None:
    page = federation.open("/models")
    page.get_by_role("link", name="melanoma-2, round 11").click()
    assert page.get_by_text("pinned by lin").is_visible()
    assert page.get_by_text("The weights keep the group C4").is_visible()
    assert page.get_by_role("row", name="vienna_dias").get_by_text("26.2 %").is_visible()
    with page.expect_download() as fetched:
        page.get_by_role("link", name="Download safetensors").click()
    assert fetched.value.suggested_filename == "melanoma-2-round-011.safetensors"
    fetched.value.save_as(tmp_path / "model")
    digest = hashlib.sha256((tmp_path / "model").read_bytes()).hexdigest()
    assert page.get_by_text(digest).is_visible()


@BOTH
def test_one_goes_from_sites_to_one_and_through_its_runs(federation: Any) -> None:
    page = federation.open("/sites")
    page.get_by_role("link", name="rosendahl", exact=True).click()
    assert page.get_by_role("heading", name="Its data in melanoma-2").is_visible()
    page.get_by_role("link", name="melanoma-1", exact=True).click()
    assert page.get_by_role("heading", name="Its data in melanoma-1").is_visible()
    page.get_by_role("navigation", name="Images the figures were made on").get_by_role("link", name="test").click()
    assert page.locator("svg.drawn").count() > 3
    page.locator("#table-auroc summary").click()
    assert page.locator("#table-auroc tbody tr").count() > 0


@BOTH
def test_the_log_is_filtered_and_what_was_found_is_saved(federation: Any, tmp_path: Path) -> None:
    page = federation.open("/audit")
    assert page.get_by_text("whole, 21 lines").is_visible()
    page.get_by_role("textbox", name="Site").fill("msk")
    page.get_by_role("combobox", name="Event").select_option("site.failed")
    page.get_by_role("button", name="Filter").click()
    assert page.locator("tbody tr").count() == 1
    assert page.get_by_text("out of memory on the device").is_visible()
    assert page.get_by_role("textbox", name="Site").input_value() == "msk"
    with page.expect_download() as fetched:
        page.get_by_role("link", name="audit.jsonl").click()
    fetched.value.save_as(tmp_path / "found")
    assert [json.loads(line)["number"] for line in (tmp_path / "found").read_text().splitlines()] == [16]


def test_what_the_keeper_tells_is_on_the_page_without_reload(federation: Any) -> None:
    page = federation.open("/sites")
    page.wait_for_selector('#link[data-state="live"]')
    page.evaluate("window.untouched = true")
    centre = open_centre(federation.centre)
    notice = read_board(centre, "sites")
    assert notice is not None
    told = [item | ({"excluded": "its scanner is away"} if item["name"] == "msk" else {}) for item in notice.value]
    write_board(centre, "sites", told)
    centre.dispose()
    page.wait_for_selector("text=its scanner is away", timeout=20_000)
    assert page.evaluate("window.untouched") is True


def test_an_operator_comes_from_a_site_to_the_act_about_it(federation: Any) -> None:
    page = federation.open("/sites/vidir_molemax", role="operator")
    page.get_by_role("link", name="Include again").click()
    assert page.get_by_role("heading", name="Include a site again").is_visible()
    assert "vidir_molemax" in page.locator("main").inner_text()


def test_the_language_is_changed_in_the_footer_and_stays(federation: Any) -> None:
    page = federation.open("/sites/msk?run=melanoma-1")
    page.get_by_role("link", name="繁體中文").click()
    assert page.locator("html").get_attribute("lang") == "zh-Hant"
    assert page.get_by_role("heading", name="在 melanoma-1 中的資料").is_visible()
    page.get_by_role("link", name="稽核").click()
    assert page.get_by_text("完整，共 21 行").is_visible()
    page.wait_for_selector("#link >> text=即時")
    page.get_by_role("link", name="English").click()
    assert page.get_by_role("heading", name="Audit").is_visible()


@pytest.mark.parametrize("path", ["/sites", "/sites/msk", "/models", "/models/melanoma-2/12", "/audit"])
def test_everything_can_be_read_without_scripts(federation: Any, path: str) -> None:
    page = federation.open(path, java_script_enabled=False)
    assert page.get_by_role("table").first.is_visible()
    assert page.get_by_role("heading", level=1).is_visible()
    # What is in it is no text to Playwright, but the browser shows it.
    assert page.locator("noscript .link").is_visible()
    assert "connecting" not in page.locator("header").inner_text()


def test_on_a_telephone_nothing_scrolls_sideways_in_chinese_either(federation: Any) -> None:
    page = federation.open("/sites", viewport=PHONE, locale="zh-TW")
    for path in ("/sites", "/sites/msk", "/models", "/models/melanoma-2/12", "/audit", "/act", "/runs/melanoma-2"):
        page.goto(federation.pages.url + path)
        assert page.locator("html").get_attribute("lang") == "zh-Hant"
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path


def test_a_site_is_reached_by_keyboard_alone(federation: Any) -> None:
    page = federation.open("/sites")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "msk":
            break
    page.keyboard.press("Enter")
    page.wait_for_url("**/sites/msk")

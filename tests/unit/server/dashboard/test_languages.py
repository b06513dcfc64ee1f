"""A page speaks the language that was chosen, else the one the browser asks for, else English."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from fastapi.testclient import TestClient

from server.dashboard.language import COOKIE, translations
from server.dashboard.rendering import environment

Visit = Callable[..., AbstractContextManager[TestClient]]


@pytest.mark.parametrize(
    ("asked", "tag"),
    [
        ("zh-TW,zh;q=0.9,en;q=0.8", "zh-Hant"),
        ("zh-Hant", "zh-Hant"),
        ("en-GB,zh-TW;q=0.5", "en"),
        ("zh-TW;q=0.4,en;q=0.9", "en"),
        ("de,fr", "en"),
        ("", "en"),
        ("zh-TW;q=much", "zh-Hant"),
        ("*", "en"),
        (";;;,,,=", "en"),
    ],
)
def test_the_browser_says_which_language(federation: Any, visiting: Visit, asked: str, tag: str) -> None:
    with visiting(federation.runs) as client:
        page = client.get("/sites", headers={"Accept-Language": asked}).text
    assert f'<html lang="{tag}">' in page
    assert ("站點" in page) == (tag == "zh-Hant")


def test_a_chosen_language_is_kept_and_nothing_else(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs) as client:
        answer = client.get("/sites", params={"language": "zh-Hant"}, headers={"Accept-Language": "en"})
        kept = answer.headers["set-cookie"]
        assert '<html lang="zh-Hant">' in client.get("/models", headers={"Accept-Language": "en"}).text
        assert '<html lang="en">' in client.get("/models?language=en").text
    assert kept.startswith(f"{COOKIE}=zh-Hant;")
    assert "SameSite=strict" in kept
    assert "HttpOnly" in kept


@pytest.mark.parametrize("chosen", ["de", "", "../../etc/passwd", "zh_Hant", "<script>"])
def test_a_language_that_is_none_changes_nothing(federation: Any, visiting: Visit, chosen: str) -> None:
    with visiting(federation.runs) as client:
        answer = client.get("/sites", params={"language": chosen})
        assert "set-cookie" not in answer.headers
        client.cookies.set(COOKIE, chosen)
        assert '<html lang="en">' in client.get("/sites").text


def test_the_switch_keeps_what_was_asked(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs) as client:
        page = client.get("/sites/msk?run=melanoma-1&split=test&language=en").text
    assert 'href="?run=melanoma-1&amp;split=test&amp;language=zh-Hant"' in page


def test_a_value_that_is_translated_is_still_escaped() -> None:
    template = environment("zh-Hant").from_string(
        "{{ text | say }}|{{ known | say }}|{{ empty | say }}|{{ text | say(v) }}"
    )
    said = template.render(text="<b>100 %(x)s</b>", known="Sites", empty="", v={"x": "<i>"})
    assert said == "&lt;b&gt;100 %(x)s&lt;/b&gt;|站點||&lt;b&gt;100 &lt;i&gt;&lt;/b&gt;"


def test_a_language_without_a_catalogue_speaks_english() -> None:
    assert translations("xx").gettext("Sites") == "Sites"


def test_an_address_that_is_wrong_is_a_page_for_people_and_json_for_programs(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs) as client:
        page = client.get("/models?first=x", headers={"Accept-Language": "zh-TW"})
        assert client.get("/api/v1/models?first=x").json()["detail"][0]["loc"] == ["query", "first"]
        missing = client.get("/nowhere")
        told = client.get("/api/v1/nowhere").json()
    assert page.status_code == 422
    assert '<html lang="zh-Hant">' in page.text
    assert missing.status_code == 404
    assert "There is nothing at this address" in missing.text
    assert "openapi.json" in told["detail"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s ago"), (89.6, "90 s ago"), (90, "2 min ago"), (7200, "2 h ago"), (172_800, "2 days ago")],
)
def test_how_long_ago_is_told_in_the_largest_fitting_unit(seconds: float, said: str) -> None:
    assert environment().from_string("{{ seconds | ago }}").render(seconds=seconds) == said
    assert "ago" not in environment("zh-Hant").from_string("{{ seconds | ago }}").render(seconds=seconds)

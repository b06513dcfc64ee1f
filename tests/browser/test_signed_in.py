"""Signing in and out in a real browser, and what is refused to whom."""

from __future__ import annotations

import time
from typing import Any

import pytest

pytestmark = pytest.mark.browser
BOTH = pytest.mark.parametrize("federation", ["sqlite", "postgresql"], indirect=True)


@BOTH
def test_who_signs_in_comes_to_the_page_they_wanted(federation: Any) -> None:
    page = federation.browse(f"{federation.pages.url}/sites")
    assert "/login" in page.url
    federation.sign_in(page, "viewer")
    assert page.url == f"{federation.pages.url}/sites"
    assert page.get_by_text("vidir_molemax").first.is_visible()
    assert page.locator(".who").get_by_text("viewer").is_visible()


def test_a_wrong_password_is_said_and_tells_nothing_of_the_name(federation: Any) -> None:
    said = set()
    for name in ("viewer", "nobody"):
        page = federation.browse(f"{federation.pages.url}/login", refusals=(401,))
        federation.sign_in(page, name, "not the right words")
        said.add(page.get_by_role("alert").inner_text())
        assert page.get_by_label("Password").input_value() == ""
    assert len(said) == 1


def test_somebody_who_guesses_is_told_to_wait(federation: Any) -> None:
    page = federation.browse(f"{federation.pages.url}/login", refusals=(401, 429))
    for number in range(8):
        federation.sign_in(page, "admin", f"guess number {number} of many")
        alert = page.get_by_role("alert").inner_text()
        if "Too many tries" in alert:
            break
    assert "Too many tries" in alert
    # Not even the right words are looked at now.
    federation.sign_in(page, "admin")
    assert "Too many tries" in page.get_by_role("alert").inner_text()
    assert "/login" in page.url


def test_a_session_ended_elsewhere_ends_the_open_page_within_seconds(federation: Any) -> None:
    page = federation.open("/")
    page.wait_for_selector('#link[data-state="live"]')
    there = federation.browse(f"{federation.pages.url}/", storage_state=federation.cookies["viewer"], refusals=(401,))
    there.get_by_role("button", name="Sign out").click()
    begun = time.monotonic()
    page.wait_for_url("**/login**", timeout=5000)
    # the watcher looks every 0.3 s
    assert time.monotonic() - begun < 3
    assert page.get_by_text("melanoma-2").count() == 0


def test_a_page_kept_from_before_signing_out_is_not_shown_again(federation: Any) -> None:
    page = federation.open("/")
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/login**")
    page.go_back()
    assert page.get_by_text("melanoma-2").count() == 0


def test_a_form_without_its_secret_changes_nothing(federation: Any) -> None:
    page = federation.open("/", role="admin", refusals=(403,))
    for words in ("", "wrong"):
        answer = page.evaluate(
            """async (csrf) => (await fetch("/accounts", {method: "POST", redirect: "manual",
                headers: {"Content-Type": "application/x-www-form-urlencoded"},
                body: new URLSearchParams({csrf, name: "mallory", role: "admin"})})).status""",
            words,
        )
        assert answer == 403
    page.goto(f"{federation.pages.url}/accounts")
    assert page.get_by_text("mallory").count() == 0


def test_another_site_cannot_have_a_browser_sign_out_or_act(federation: Any) -> None:
    page = federation.open("/", role="admin", refusals=(401, 403))
    # A page of elsewhere: same machine, another port, which is another origin, though cookies go by host alone.
    page.route("http://127.0.0.1:1/", lambda route: route.fulfill(
        content_type="text/html",
        body=f'<form id="f" method="post" action="{federation.pages.url}/logout"><input name="csrf" value=""></form>',
    ))  # fmt: skip
    page.goto("http://127.0.0.1:1/")
    page.evaluate("document.getElementById('f').submit()")
    page.wait_for_url(f"{federation.pages.url}/logout")
    assert page.locator("text=Not accepted").or_(page.locator("text=Signed out")).first.is_visible()
    page.goto(f"{federation.pages.url}/")
    assert page.get_by_text("melanoma-2").first.is_visible()


def test_a_restart_of_the_pages_signs_nobody_out(federation: Any) -> None:
    page = federation.open("/")
    page.wait_for_selector('#link[data-state="live"]')
    assert federation.pages.stop() == 0
    page.wait_for_selector("text=connection lost, trying again")
    federation.pages.start()
    page.wait_for_selector('#link[data-state="live"]')
    page.goto(f"{federation.pages.url}/sites")
    assert page.url == f"{federation.pages.url}/sites"


@pytest.mark.parametrize("role", ["viewer", "operator"])
def test_accounts_are_an_admins_alone(federation: Any, role: str) -> None:
    page = federation.open("/accounts", role=role, refusals=(403,))
    assert page.get_by_text("needs the role admin").is_visible()
    assert page.get_by_role("link", name="Accounts").count() == 0


def test_no_cookie_is_in_reach_of_a_script(federation: Any) -> None:
    page = federation.open("/")
    assert page.evaluate("document.cookie") == ""
    kept = page.context.cookies()
    assert kept
    assert all(cookie["httpOnly"] and cookie["sameSite"] == "Strict" for cookie in kept)

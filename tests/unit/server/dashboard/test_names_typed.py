"""What somebody types or sends as a name is text for every database, or none at all."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from signing_in import post, sign_in
from sqlalchemy import select
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from server.centre.orders import history
from server.centre.schema import Attempt

NAMES = ["ve\x00ra", "\x00", "\ud800", "\U0001f9ec" * 300]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_with_what_is_no_text_signs_nobody_in_and_counts(browser: TestClient, centre: Engine, name: str) -> None:
    typed = name.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    answer = sign_in(browser, typed)
    assert (answer.status_code, "Name and password do not fit together" in answer.text) == (401, True)
    with Session(centre) as session:
        assert len(session.scalars(select(Attempt.key)).all()) == 2


@pytest.mark.parametrize("name", ["a%00b", "%00", "%ed%a0%80", "vera%00"])
def test_an_address_with_what_is_no_text_is_nobodys(browser: TestClient, name: str) -> None:
    sign_in(browser, "anna")
    for path in (f"/accounts/{name}", f"/sites/{name}", f"/runs/{name}", f"/act/kits/{name}.zip", f"/models/{name}/1"):
        assert browser.get(path).status_code == 404, path
    assert post(browser, f"/accounts/{name}/disable").status_code == 404
    assert post(browser, "/account/sessions/end", {"session": "\x00"}).status_code == 303
    assert post(browser, "/account/tokens", {"name": "\x00"}).status_code == 422


def test_a_reason_with_what_is_no_text_is_kept_and_shown(browser: TestClient, centre: Engine) -> None:
    sign_in(browser, "otto")
    answer = post(browser, "/act/exclude", {"site": "basel", "reason": "a\x00b", "typed": "basel"})
    assert answer.status_code == 303
    assert history(centre)[0].arguments["site"] == "basel"
    assert browser.get(answer.headers["location"]).status_code == 200
    assert browser.get("/act").status_code == 200

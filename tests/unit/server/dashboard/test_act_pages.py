"""The pages by which an operator acts (server/dashboard/pages/act*.py)."""

from __future__ import annotations

import base64
import re
import time

import pytest

from server.centre.board import kit_key, write_board
from server.centre.opening import writing
from server.centre.orders import MOST_WAITING, decide, find, history, place, take
from server.centre.schema import Order
from server.dashboard.acts import ACTS, PATIENCE


def test_without_a_centre_the_page_says_that_one_can_only_look(open_pages, plain):
    with open_pages(centre=False) as client:
        assert "Here one can only look." in plain(client.get("/act"))
        assert client.get("/act/stop").status_code == 403
        assert client.post("/act/stop", data={"run": "melanoma-3"}).status_code == 403
        assert client.get("/act/orders/1").status_code == 404


def test_a_viewer_sees_what_was_ordered_and_can_order_nothing(open_pages, federation, plain):
    number = place(federation.centre, "stop", {"run": "melanoma-3"}, who="lin", via="page")
    with open_pages("viewer") as client:
        page = client.get("/act")
        assert "Acts need the role operator" in plain(page)
        assert "/act/start" not in page.text
        assert "<form" not in client.get(f"/act/orders/{number}").text.split("<main")[1].split("</main")[0]
        for path in ("/act/start", "/act/confirm", *(f"/act/{kind}" for kind in ACTS)):
            assert client.get(path).status_code == 403
            assert client.post(path, data={"site": "msk", "run": "melanoma-3"}).status_code == 403
        for path in ("/act/start/order", "/act/confirm/order", f"/act/orders/{number}/withdraw"):
            assert client.post(path).status_code == 403
        assert client.get("/act/kits/oslo.zip").status_code == 403
    assert len(history(federation.centre)) == 1


def test_an_operator_finds_every_act_that_fits(operator):
    page = operator.get("/act").text
    for path in ("start", "stop?run=melanoma-3", "invite", "confirm", "exclude", "include", "revoke", "unpin"):
        assert f'href="/act/{path}"' in page
    assert operator.get("/act/nothing").status_code == 404
    assert operator.post("/act/nothing", data={}).status_code == 404
    assert "<html" not in operator.get("/act", headers={"hx-request": "true"}).text


def test_a_stop_says_what_will_happen_and_is_ordered_once_confirmed(operator, plain, ordered):
    page = plain(operator.get("/act/stop?run=melanoma-3"))
    assert "melanoma-3 rests as soon as the round in flight is done" in page
    assert "Now: running, round 7 of 20." in page
    row = ordered(operator.post("/act/stop", data={"run": "melanoma-3"}))
    assert (row.kind, row.arguments, row.who, row.via, row.state) == (
        "stop", {"run": "melanoma-3"}, "lin", "page", "waiting",
    )  # fmt: skip


def test_a_site_is_excluded_only_with_a_reason_and_its_name_typed(operator, federation, plain, ordered):
    page = operator.get("/act/exclude?site=msk").text
    assert 'name="typed"' in page
    assert "<option selected>msk</option>" in page
    assert "vidir_molemax" not in page
    wrong = operator.post("/act/exclude", data={"site": "msk", "reason": " ", "typed": "mks"})
    assert wrong.status_code == 422
    assert "Say why" in wrong.text
    assert "The name that was typed is not the site" in plain(wrong)
    assert history(federation.centre) == ()
    row = ordered(operator.post("/act/exclude", data={"site": "msk", "reason": "moves", "typed": "msk"}))
    assert row.arguments == {"site": "msk", "reason": "moves"}


@pytest.mark.parametrize(
    ("kind", "sent", "arguments"),
    [
        ("resume", {"run": "melanoma-2"}, {"run": "melanoma-2"}),
        ("include", {"site": "vidir_molemax", "typed": "vidir_molemax"}, {"site": "vidir_molemax"}),
        ("revoke", {"site": "msk", "reason": "stolen", "typed": "msk"}, {"site": "msk", "reason": "stolen"}),
        ("invite", {"site": "bern"}, {"site": "bern"}),
        ("pin", {"run": "melanoma-2", "round": "3", "note": "x"}, {"run": "melanoma-2", "round": 3, "note": "x"}),
        ("unpin", {"run": "melanoma-2"}, {"run": "melanoma-2"}),
        ("onnx", {"run": "melanoma-2", "round": "3"}, {"run": "melanoma-2", "round": 3}),
    ],
)
def test_every_act_has_a_page_and_gives_its_order(operator, kind, sent, arguments, ordered):
    shown = operator.get(f"/act/{kind}", params={name: sent[name] for name in ("run", "site", "round") if name in sent})
    assert shown.status_code == 200
    assert "What will happen" in shown.text
    row = ordered(operator.post(f"/act/{kind}", data=sent))
    assert (row.kind, row.arguments) == (kind, arguments)


@pytest.mark.parametrize(
    ("kind", "sent", "said"),
    [
        ("stop", {}, "Choose one."),
        ("revoke", {"reason": "x"}, "Choose one."),
        ("pin", {"run": "melanoma-2", "round": "two"}, "Expected the number of a round."),
        ("pin", {"run": "melanoma-2", "round": "0"}, "round: Input should be greater than or equal to 1"),
        ("invite", {"site": "<script>"}, "site: String should match pattern"),
        ("stop", {"run": "../x"}, "run: String should match pattern"),
    ],
)
def test_what_cannot_be_ordered_is_said_on_the_form(operator, federation, kind, sent, said, plain):
    answer = operator.post(f"/act/{kind}", data=sent)
    assert answer.status_code == 422
    assert said in plain(answer)
    assert "<script>" not in answer.text.split("<main")[1]
    assert history(federation.centre) == ()


def test_too_many_orders_are_told(operator, federation, plain):
    for number in range(MOST_WAITING):
        place(federation.centre, "invite", {"site": f"s{number}"}, who="lin", via="page")
    answer = operator.post("/act/stop", data={"run": "melanoma-3"})
    assert answer.status_code == 503
    assert "50 orders wait already" in plain(answer)
    # On the form itself, as it was filled in, not as a record that cannot be read.
    assert "<option selected>melanoma-3</option>" in answer.text
    assert "cannot be read" not in plain(answer)
    told = {"name": "trial-1", "config": '{"rounds": 7, "seed": 5}'}
    answer = operator.post("/act/start/order", data=told)
    assert (answer.status_code, "50 orders wait already" in plain(answer)) == (503, True)
    assert 'name="rounds" value="7"' in answer.text
    assert 'name="name" value="trial-1"' in answer.text


def test_a_centre_that_cannot_be_used_is_told_as_such(operator, federation, plain):
    with federation.centre.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE orders RENAME TO elsewhere")
    for answer in (operator.get("/act"), operator.get("/act/orders/1")):
        assert answer.status_code == 503
        assert "The server's database cannot be used" in plain(answer)
    answer = operator.post("/act/stop", data={"run": "melanoma-3"})
    assert (answer.status_code, "centre: cannot write an order" in plain(answer)) == (503, True)


def test_an_order_s_page_follows_it_from_waiting_to_its_answer(operator, federation, plain):
    number = place(federation.centre, "exclude", {"site": "msk", "reason": "<b>moves"}, who="lin", via="api")
    page = operator.get(f"/act/orders/{number}")
    assert 'hx-trigger="every 1s"' in page.text
    assert "<b>moves" not in page.text
    assert "(API)" in plain(page)
    assert "Take the order back" in page.text
    take(federation.centre)
    assert "being carried out" in operator.get(f"/act/orders/{number}").text
    decide(federation.centre, number, "done", "msk is left out")
    done = operator.get(f"/act/orders/{number}", headers={"hx-request": "true"})
    assert "msk is left out" in done.text
    assert "every 1s" not in done.text
    assert "<html" not in done.text
    assert operator.get("/act/orders/999").status_code == 404
    assert operator.get("/act/orders/0").status_code == 404


def test_an_order_that_nobody_takes_up_says_so(operator, federation, plain):
    number = place(
        federation.centre, "stop", {"run": "a"}, who="lin", via="page", clock=lambda: time.time() - PATIENCE - 5
    )
    assert "Nobody has taken this order up for" in plain(operator.get(f"/act/orders/{number}"))
    assert "nobody has taken it up yet" in plain(operator.get("/act"))


def test_a_keeper_that_is_silent_or_never_was_is_told(operator, federation, plain):
    write_board(federation.centre, "status", {"runs": []}, clock=lambda: 1.0)
    assert "The keeper was last heard of at" in plain(operator.get("/act"))
    assert "The keeper was last heard of at" in plain(operator.get("/act/invite"))
    with federation.centre.begin() as connection:
        connection.exec_driver_sql("DELETE FROM board")
    assert "No keeper has told anything here yet" in plain(operator.get("/act"))
    assert operator.get("/act/start").status_code == 200


def test_an_order_can_be_taken_back(operator, federation):
    number = place(federation.centre, "stop", {"run": "melanoma-3"}, who="lin", via="page")
    answer = operator.post(f"/act/orders/{number}/withdraw")
    assert answer.headers["location"] == f"/act/orders/{number}"
    assert find(federation.centre, number).answer == "withdrawn by lin"


def test_older_orders_are_on_further_pages_and_remarks_are_none(operator, federation):
    with writing(federation.centre) as session:
        session.add(Order(kind="remark", arguments={}, who="x", via="page", created=1.0, state="remark"))
    for number in range(35):
        decide(
            federation.centre,
            place(federation.centre, "invite", {"site": f"s{number}"}, who="lin", via="page"),
            "done",
            "",
        )
    page = operator.get("/act").text
    older = re.search(r'href="(/act\?before=\d+)"', page).group(1)
    assert "s34" in page
    assert "s0<" not in page
    assert ">s0<" in operator.get(older).text.replace("\n", "")
    assert operator.get("/act/orders/1").status_code == 404


def test_a_kit_is_handed_out_as_the_keeper_put_it_there(operator, federation):
    write_board(federation.centre, kit_key("oslo"), {"name": "oslo.zip", "base64": base64.b64encode(b"PKx").decode()})
    number = place(federation.centre, "invite", {"site": "oslo"}, who="lin", via="page")
    decide(federation.centre, number, "done", "made")
    assert 'href="/act/kits/oslo.zip"' in operator.get(f"/act/orders/{number}").text
    answer = operator.get("/act/kits/oslo.zip")
    assert (answer.content, answer.headers["content-type"]) == (b"PKx", "application/zip")
    assert 'filename="oslo.zip"' in answer.headers["content-disposition"]
    write_board(federation.centre, kit_key("bern"), {"base64": "!"})
    for site in ("msk", "bern"):
        assert operator.get(f"/act/kits/{site}.zip").status_code == 404

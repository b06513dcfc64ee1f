"""Letting a key in on the pages (server/dashboard/pages/act_confirm.py)."""

from __future__ import annotations

import html

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from popmi_core.deployment.enrolment import Enrolment
from server.centre.orders import MOST_WAITING, history, place


def enrolment(site="oslo", project="Melanoma (phantom)"):
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    text = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    return Enrolment(project=project, site=site, public_key=text)


def sent(client, payload, name="oslo.enrolment.json"):
    return client.post("/act/confirm", files={"file": (name, payload, "application/json")})


def test_a_key_is_let_in_after_its_fingerprint_was_shown_and_typed_as_read_out(operator, federation, ordered):
    assert 'type="file"' in operator.get("/act/confirm").text
    one = enrolment()
    shown = sent(operator, one.model_dump_json())
    assert f"<code>{html.escape(one.fingerprint)}</code>" in shown.text
    assert "Is this the key of oslo?" in shown.text
    form = {"enrolment": one.model_dump_json(), "read_out": "AAAAAAAA"}
    wrong = operator.post("/act/confirm/order", data=form)
    assert wrong.status_code == 422
    assert "do not let this key in" in wrong.text
    assert history(federation.centre) == ()
    row = ordered(operator.post("/act/confirm/order", data=form | {"read_out": one.fingerprint[-8:]}))
    assert row.arguments == {"enrolment": one.model_dump_json(), "read_out": one.fingerprint[-8:]}
    assert "public_key" not in operator.get(f"/act/orders/{row.id}").text


@pytest.mark.parametrize(
    ("site", "project", "said"),
    [
        ("oslo", "Another", "is for the project Another, which is not this server"),
        ("nowhere", "Melanoma (phantom)", "Nobody has invited nowhere here"),
        ("genova", "Melanoma (phantom)", "genova was revoked"),
        ("msk", "Melanoma (phantom)", "msk is enrolled already"),
    ],
)
def test_what_speaks_against_a_key_is_said_before_anybody_rings_up(operator, site, project, said, plain):
    assert said in plain(sent(operator, enrolment(site, project).model_dump_json()))


@pytest.mark.parametrize(
    ("payload", "said"),
    [(b"{}", "This is no enrolment"), (b"\xff\xfe", "This is no enrolment"), (b"x" * 20_001, "too large")],
)
def test_what_is_no_enrolment_is_refused(operator, payload, said, plain):
    answer = sent(operator, payload)
    assert answer.status_code == 422
    assert said in plain(answer)
    assert operator.post("/act/confirm/order", data={"enrolment": "{}", "read_out": "x"}).status_code == 422


def test_without_a_file_nothing_is_shown(operator, plain):
    assert "Choose the file that the site sent back" in plain(operator.post("/act/confirm", data={}))
    assert "Choose the file" in plain(sent(operator, b"", name=""))


def test_a_key_that_cannot_be_ordered_now_stays_on_the_page_that_compares_it(operator, federation, plain):
    for number in range(MOST_WAITING):
        place(federation.centre, "invite", {"site": f"s{number}"}, who="lin", via="page")
    file = enrolment("oslo")
    told = {"enrolment": file.model_dump_json(), "read_out": file.fingerprint[-8:]}
    answer = operator.post("/act/confirm/order", data=told)
    assert (answer.status_code, "50 orders wait already" in plain(answer)) == (503, True)
    assert 'name="read_out"' in answer.text

"""Letting a site's key in: its file, then its fingerprint to be compared by telephone, and only then the order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.datastructures import FormData, UploadFile
from starlette.responses import RedirectResponse, Response

from popmi_core.deployment.enrolment import Enrolment, parse_enrolment
from popmi_core.errors import ConfigError, RunError, SetupError
from server.centre.kinds import READ_OUT
from server.dashboard.access import allow
from server.dashboard.keeping import told
from server.dashboard.language import N_
from server.dashboard.pages.act import form_of, give_order
from server.dashboard.pages.signin import centre_of
from server.dashboard.rendering import render

router = APIRouter(include_in_schema=False)
Given = Annotated[FormData, Depends(form_of)]
LONGEST_FILE = 20_000
"""Bytes of an enrolment; one has a few hundred."""
_NO_FILE = N_("Choose the file that the site sent back: NAME.enrolment.json.")
_NO_ENROLMENT = N_("This is no enrolment: expected the JSON file that popmi site enrol wrote. Ask the site for it.")
_TOO_LONG = N_("This file is too large for an enrolment.")
_NOT_THE_SAME = N_(
    "These are not the last letters of this fingerprint, capitals and all. Ask the site to read them again. If they "
    "stay different, somebody changed the file on its way: do not let this key in."
)


@router.get("/act/confirm")
def form(request: Request) -> Response:
    """Ask for the file."""
    allow(request, "operator")
    return _ask(request, "")


@router.post("/act/confirm")
def show(request: Request, given: Given) -> Response:
    """Show the fingerprint that is to be compared."""
    allow(request, "operator")
    file = given.get("file")
    if not isinstance(file, UploadFile) or not file.filename:
        return _ask(request, _NO_FILE)
    payload = file.file.read(LONGEST_FILE + 1)
    if len(payload) > LONGEST_FILE:
        return _ask(request, _TOO_LONG)
    text = payload.decode("utf-8", "replace")
    enrolment = _parsed(text)
    return _ask(request, _NO_ENROLMENT) if enrolment is None else _compare(request, enrolment, text, "")


@router.post("/act/confirm/order")
def order(request: Request, given: Given) -> Response:
    """Order that the key is let in, if the letters that were read out are its fingerprint's last."""
    person = allow(request, "operator")
    text, read_out = str(given.get("enrolment", "")), str(given.get("read_out", "")).strip()
    enrolment = _parsed(text)
    if enrolment is None:
        return _ask(request, _NO_ENROLMENT)
    # Compared here for a quick answer; the keeper compares again, and its word counts.
    if len(read_out) != READ_OUT or not enrolment.fingerprint.endswith(read_out):
        return _compare(request, enrolment, text, _NOT_THE_SAME)
    try:
        number = give_order(centre_of(request), "confirm", {"enrolment": text, "read_out": read_out}, person)
    except ConfigError as error:
        return _ask(request, str(error))
    except RunError as error:
        return _compare(request, enrolment, text, str(error), status=503)
    return RedirectResponse(f"/act/orders/{number}", status_code=303)


def _parsed(text: str) -> Enrolment | None:
    try:
        return parse_enrolment(text, source="the file")
    except SetupError:
        return None


def _ask(request: Request, wrong: str) -> Response:
    return render(request, "act_confirm.html", status=422 if wrong else 200, wrong=wrong, told=told(request, "status"))


def _compare(request: Request, enrolment: Enrolment, text: str, wrong: str, *, status: int = 422) -> Response:
    known: Mapping[str, object] = next(
        (item for item in told(request, "sites").items() if item.get("name") == enrolment.site), {}
    )
    project = told(request, "plan").mapping().get("project")
    return render(
        request,
        "act_compare.html",
        status=status if wrong else 200,
        enrolment=enrolment,
        text=text,
        wrong=wrong,
        state=known.get("state"),
        foreign=project is not None and enrolment.project != project,
        letters=READ_OUT,
    )

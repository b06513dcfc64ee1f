"""Starting a run: the form, then a page that shows what will happen, and only then the order."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import ValidationError
from starlette.datastructures import FormData
from starlette.responses import RedirectResponse, Response

from popmi_core.config import RunConfig
from popmi_core.errors import ConfigError, RunError
from server.dashboard.access import allow
from server.dashboard.acts import run_going
from server.dashboard.keeping import told
from server.dashboard.language import N_
from server.dashboard.pages.act import form_of, give_order
from server.dashboard.pages.signin import centre_of
from server.dashboard.rendering import render
from server.dashboard.startform import FIELDS, PRIVACY, PRIVATE, Filled, check, differences, fill

router = APIRouter(include_in_schema=False)
Given = Annotated[FormData, Depends(form_of)]
_LOST = N_("The description did not arrive whole. Fill in the form again.")


@router.get("/act/start")
def form(request: Request) -> Response:
    """The form, filled in with the planned run."""
    allow(request, "operator")
    planned, sites = _planned(request)
    return _form(request, fill(planned, sites), {})


@router.post("/act/start")
def confirm(request: Request, given: Given) -> Response:
    """Show what will happen, or what is wrong with the description."""
    allow(request, "operator")
    planned, sites = _planned(request)
    filled = _filled(given)
    checked = check(filled, sites)
    if checked.config is None:
        return _form(request, filled, checked.wrong)
    return render(
        request,
        "act_start_confirm.html",
        name=checked.name,
        config=checked.config,
        text=json.dumps(checked.config.model_dump(mode="json", exclude_none=True)),
        differences=differences(planned, checked.config),
        sites=checked.config.sites or sites,
        going=run_going(told(request, "status")),
        code_hash=str(told(request, "status").mapping().get("code_hash") or ""),
    )


@router.post("/act/start/order")
def order(request: Request, given: Given) -> Response:
    """Order the run that was confirmed."""
    person = allow(request, "operator")
    name = str(given.get("name", ""))
    try:
        config = json.loads(str(given.get("config", "")))
        number = give_order(centre_of(request), "start", {"name": name, "config": config}, person)
    except RunError as error:
        # What was confirmed stays in the form: the same can be ordered in a while.
        confirmed = replace(fill(RunConfig.model_validate(config), _planned(request)[1]), name=name)
        return _form(request, confirmed, {"": str(error)}, status=503)
    except (ValueError, RecursionError, ConfigError) as error:
        planned, sites = _planned(request)
        wrong = str(error) if isinstance(error, ConfigError) else _LOST
        return _form(request, fill(planned, sites), {"": wrong})
    return RedirectResponse(f"/act/orders/{number}", status_code=303)


def _planned(request: Request) -> tuple[RunConfig, tuple[str, ...]]:
    """Return the planned run and the sites that could take part, as far as the keeper told."""
    plan = told(request, "plan").mapping()
    try:
        config = RunConfig.model_validate(plan.get("config", {}))
    except ValidationError:
        # Of another version of POPMI: its own defaults are where to begin then.
        config = RunConfig()
    out = {str(item.get("name")) for item in told(request, "sites").items() if item.get("excluded") is not None}
    return config, tuple(str(site) for site in plan.get("sites", ()) if str(site) not in out)


def _filled(given: FormData) -> Filled:
    def text(name: str) -> str:
        value = given.get(name, "")
        return value if isinstance(value, str) else ""

    return Filled(
        values={item.name: text(item.name) for item in (*FIELDS, *PRIVACY)},
        sites=tuple(value for value in given.getlist("sites") if isinstance(value, str)),
        private=text(PRIVATE) == "yes",
        toml=text("toml"),
        name=text("name"),
    )


def _form(request: Request, filled: Filled, wrong: Any, *, status: int = 422) -> Response:
    plan = told(request, "plan")
    return render(
        request,
        "act_start.html",
        status=status if wrong else 200,
        filled=filled,
        wrong=wrong,
        fields=FIELDS,
        privacy=PRIVACY,
        sites=_planned(request)[1],
        plan=plan,
        told=told(request, "status"),
        going=run_going(told(request, "status")),
    )

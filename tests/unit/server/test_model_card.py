"""What a model's card and a run's environment say (server/card.py, environment.py)."""

from __future__ import annotations

import json
import math
import platform

import pytest

from popmi_core.config import parse_config
from popmi_core.fusion import Fused
from popmi_core.protocol import Assignment, Report, RunPlan
from server.card import LIMITS, LOCAL_LIMIT, PHANTOM_LIMIT, model_card, write_card
from server.environment import describe_environment
from server.results import Evaluation, RoundResult, SiteOutcome


def plan(*, phantom: bool = False, **config) -> RunPlan:
    return RunPlan(
        run="trial",
        config=parse_config(config),
        folder="/runs/trial",
        data_name="skin",
        phantom=phantom,
        classes=("mel", "nv"),
        lineup=(Assignment(site="a", data=("/data/a",), state="/runs/trial/sites/a"),),
    )


def done(**changes) -> RoundResult:
    report = Report(run="trial", server_round=2, site="a", num_examples=31)
    described = {
        "server_round": 2,
        "seconds": 1.0,
        "seconds_combine": 0.1,
        "train": [SiteOutcome("a", "ok", report=report), SiteOutcome("b", "quarantined", "'w' holds 3 NaN")],
        "evaluate": [],
        "matched": [],
        "fused": Fused({}, {"a": 1.0}, {"all": "plain average"}),
        "note": "",
        "evaluation": Evaluation(external={"auroc": 0.71, "auprc": math.nan}),
    }
    return RoundResult(**{**described, **changes})


def test_the_card_says_data_sites_round_metrics_and_who_was_left_out():
    card = model_card(plan(), done())
    assert (card["data"], card["round"], card["sites"]) == ("skin", 2, {"a": 31})
    assert card["left_out"] == {"b": "quarantined: 'w' holds 3 NaN"}
    assert card["external"] == {"auroc": 0.71, "auprc": None}
    assert card["rules"] == {"all": "plain average"}
    assert json.loads(json.dumps(card)) == card


def test_equal_runs_have_equal_cards_wherever_and_whenever_they_ran():
    card = model_card(plan(), done())
    assert card == model_card(plan(), done(seconds=9.0, seconds_combine=3.0))
    assert "/runs" not in json.dumps(card)
    assert "/data" not in json.dumps(card)


@pytest.mark.parametrize(
    ("made", "limit"), [(plan(phantom=True), PHANTOM_LIMIT), (plan(strategy="local"), LOCAL_LIMIT)]
)
def test_what_a_model_must_not_be_taken_for_is_said(made, limit):
    assert limit in model_card(made, done())["limits"]
    assert model_card(plan(), done())["limits"] == list(LIMITS)


def test_a_void_round_says_so_on_its_card():
    card = model_card(plan(), done(fused=None, note="void: 0 usable update(s)"))
    assert card["rules"] == {"void": "void: 0 usable update(s)"}


def test_the_written_card_is_readable_and_holds_the_hash(tmp_path):
    write_card(tmp_path / "card.md", "trial", model_card(plan(), done()), "abc123")
    text = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert text.startswith("# trial, round 2 of 6")
    for said in ("abc123", "| a | 31 |", "not in this round: quarantined", "| auprc | undefined |"):
        assert said in text


def test_the_environment_names_versions_and_no_host():
    told = describe_environment()
    assert told["python"] == platform.python_version()
    assert told["packages"]["torch"] != "not installed"
    assert platform.node() not in json.dumps(told)


def test_a_missing_package_is_said_to_be_missing(monkeypatch):
    monkeypatch.setattr("server.environment.PACKAGES", ("no-such-package",))
    assert describe_environment()["packages"] == {"no-such-package": "not installed"}

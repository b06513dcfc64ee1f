"""Starting a run on the pages (server/dashboard/pages/act_start.py, startform.py)."""

from __future__ import annotations

import html
import json
import re

import pytest

from server.centre.board import write_board
from server.centre.orders import history


def filled(client):
    """Return what a browser would send of the form as it stands."""
    page = client.get("/act/start").text
    values = {
        name: html.unescape(value) for name, value in re.findall(r'<input id="(\w+)" name="\w+" value="([^"]*)"', page)
    }
    for name, options in re.findall(r'<select id="(\w+)".*?>(.*?)</select>', page, re.S):
        values[name] = re.search(r"<option selected>([^<]*)<", options).group(1)
    values["toml"] = html.unescape(re.search(r"<textarea[^>]*>(.*?)</textarea>", page, re.S).group(1))
    values["sites"] = re.findall(r'name="sites" value="([^"]*)" checked', page)
    if re.search(r'name="privacy" value="yes" checked', page):
        values["privacy"] = "yes"
    return values


def hidden(page):
    return {
        name: html.unescape(value) for name, value in re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page)
    }


def test_the_planned_run_is_started_as_it_is(operator, plain, ordered):
    form = filled(operator)
    assert (form["strategy"], form["rounds"], form["sites"]) == ("fedprox", "20", ["msk", "rosendahl"])
    assert form["toml"].strip() == "[local]\nproximal_mu = 0.5"
    confirm = operator.post("/act/start", data=form)
    assert confirm.status_code == 200
    assert "None: this is the planned run." in confirm.text
    assert "without differential privacy" in plain(confirm)
    row = ordered(operator.post("/act/start/order", data=hidden(confirm.text)))
    assert row.kind == "start"
    assert row.arguments["name"].endswith("-fedprox-seed0")
    assert row.arguments["config"]["local"]["proximal_mu"] == 0.5
    assert "proximal_mu" in operator.get(f"/act/orders/{row.id}").text


def test_what_differs_from_the_planned_run_is_shown_before_anything_is_ordered(operator, federation, plain, ordered):
    form = filled(operator) | {
        "strategy": "opm", "rounds": "5", "name": "trial-1", "sites": ["msk"], "privacy": "yes",
        "target_epsilon": "2.5", "toml": "[local]\nweight_decay = 0.1\n",
    }  # fmt: skip
    confirm = operator.post("/act/start", data=form)
    page = plain(confirm)
    assert "Start trial-1?" in page
    for said in ("rounds 20 5", "strategy fedprox opm", "local.proximal_mu 0.5 0.01", "sites – msk",
                 "privacy.target_epsilon – 2.5", "local.weight_decay 0.05 0.1", "match.method none opm"):  # fmt: skip
        assert said in page
    assert "budget of epsilon 2.5" in page
    assert history(federation.centre) == ()
    row = ordered(operator.post("/act/start/order", data=hidden(confirm.text)))
    config = row.arguments["config"]
    assert (row.arguments["name"], config["sites"], config["privacy"]["target_epsilon"]) == ("trial-1", ["msk"], 2.5)
    assert config["fuse"]["rule"] == "adaptive_circuit"


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"rounds": "0"}, "rounds", "greater than or equal to 1"),
        ({"rounds": "many"}, "rounds", "valid integer"),
        ({"learning_rate": "-1"}, "learning_rate", "greater than 0"),
        ({"min_sites": "9"}, "min_sites", "More sites than can take part now."),
        ({"sites": []}, "sites", "No site is chosen"),
        ({"name": "../x"}, "name", "Expected letters, digits"),
        ({"toml": "[local"}, "toml", "TOML:"),
        ({"toml": "rounds = 3"}, "toml", "rounds: say it in the field above"),
        ({"toml": "sites = ['a']\n[privacy]\ntarget_epsilon = 1.0"}, "toml", "sites, privacy: say it"),
        ({"toml": "[local]\nnothing = 1"}, "toml", "local.nothing: Extra inputs"),
        ({"toml": "x" * 20_001}, "toml", "too long"),
        ({"privacy": "yes", "target_epsilon": ""}, "target_epsilon", "Field required"),
        ({"privacy": "yes", "target_delta": "2"}, "target_delta", "less than 1"),
        ({"toml": "[fuse]\nrule = 'ensemble'"}, "", "the ensemble is no model"),
    ],
)
def test_what_describes_no_run_is_said_at_its_field_and_the_form_stays_filled_in(operator, changes, field, said):
    answer = operator.post("/act/start", data=filled(operator) | {"seed": "77"} | changes)
    assert answer.status_code == 422
    place = re.search(rf'id="wrong-{field or "whole"}" role="alert">(.*?)</p>', answer.text, re.S)
    assert said in html.unescape(place.group(1))
    assert 'value="77"' in answer.text


def test_a_description_that_did_not_arrive_whole_starts_nothing(operator, federation):
    for form in ({"name": "a", "config": "{"}, {"name": "a/b", "config": "{}"}, {"config": json.dumps({"rounds": 0})}):
        assert operator.post("/act/start/order", data=form).status_code == 422
    assert history(federation.centre) == ()


def test_a_plan_of_another_version_is_left_and_the_defaults_taken(operator, federation, planned):
    write_board(federation.centre, "plan", planned | {"config": {"new_key": 1}})
    assert filled(operator)["strategy"] == "opm"

"""`popmi simulate --group auto`: pilots choose, the folder keeps the choice, and going on does not choose again."""

from __future__ import annotations

import json

import pytest

from popmi_core.cli import pilots
from popmi_core.cli.lineup import plan_run, reopen_run
from popmi_core.cli.pilots import choose_in_pilots, keep_choice
from popmi_core.cli.summary import read_choice
from popmi_core.config import parse_config
from popmi_core.errors import ConfigError, ModelError, RunError


def config(**changes):
    adapter = {"group": "auto", "pilot_rounds": 3, "pilot_seeds": 2, **changes.pop("adapter", {})}
    model = {"backbone": "popmi_vit_micro", "image_size": 32, "adapter": adapter, **changes.pop("model", {})}
    return parse_config({"strategy": "fedavg", "data": {"source": "phantom"}, "model": model, **changes})


@pytest.fixture
def told_by(monkeypatch):
    """Pilots that are not run but told their figure by group and free blocks; returns what was planned."""

    def tell(figures):
        plans = []
        monkeypatch.setattr(pilots, "_figure_of", lambda plan: (figures[_key(plan)], [50] * 8))
        return plans, plans.append

    return tell


def _key(plan):
    adapter = plan.config.model.adapter
    return "soft" if adapter.free_blocks else adapter.group


def test_every_candidate_is_run_shortly_without_turned_views_and_the_choice_goes_into_the_plan(told_by, tmp_path):
    plans, simulate = told_by({"none": 0.80, "soft": 0.81, "C4": 0.80, "D4": 0.60})
    lines = []
    decided, choice = choose_in_pilots(config(seed=7, rounds=9), tmp_path / "run", simulate, lines.append)
    assert [(_key(plan), plan.config.seed) for plan in plans] == [
        (group, seed) for group in ("none", "soft", "C4", "D4") for seed in (7, 8)
    ]
    assert {plan.config.rounds for plan in plans} == {3}
    assert {plan.config.local.augment for plan in plans} == {"shifts"}
    assert (decided.model.adapter.group, decided.rounds, decided.seed) == ("C4", 9, 7)
    # A model that is not all of D4 is not shown mirror images.
    assert decided.local.augment == "shifts"
    assert choice.sentence.startswith("C4: mean balanced accuracy 0.800 over 2 pilots and 400 validation images")
    assert len(lines) == 8


def test_a_run_of_all_of_d4_keeps_its_views_and_one_without_views_gets_none(told_by, tmp_path):
    _, simulate = told_by({"none": 0.80, "soft": 0.80, "C4": 0.80, "D4": 0.80})
    decided, _ = choose_in_pilots(config(), tmp_path / "a", simulate, lambda line: None)
    assert (decided.model.adapter.group, decided.local.augment) == ("D4", True)
    _, simulate = told_by({"none": 0.90, "soft": 0.10, "C4": 0.10, "D4": 0.10})
    decided, _ = choose_in_pilots(config(local={"augment": False}), tmp_path / "b", simulate, lambda line: None)
    assert (decided.model.adapter.group, decided.local.augment) == ("none", False)


def test_a_resumed_run_keeps_the_choice(told_by, tmp_path):
    _, simulate = told_by({"none": 0.80, "soft": 0.95, "C4": 0.50, "D4": 0.50})
    decided, choice = choose_in_pilots(config(), tmp_path / "run", simulate, lambda line: None)
    plan = plan_run(decided, tmp_path / "run")
    keep_choice(choice, tmp_path / "run")
    again = reopen_run(tmp_path / "run")
    assert again.config == plan.config
    assert (again.config.model.adapter.group, again.config.model.adapter.free_blocks) == ("C4", 1)
    assert read_choice(tmp_path / "run") == choice.sentence
    assert json.loads((tmp_path / "run" / "group.json").read_text())["scores"]["soft C4"] == [0.95, 0.95]
    assert read_choice(tmp_path) is None


def test_a_candidate_the_backbone_cannot_have_is_left_out(told_by, tmp_path):
    # Merged after its last block nothing is left to be freed.
    plans, simulate = told_by({"none": 0.80, "C4": 0.80, "D4": 0.80})
    _, choice = choose_in_pilots(config(adapter={"merge_block": 2}), tmp_path / "run", simulate, lambda line: None)
    assert list(choice.left_out) == ["soft C4"]
    assert "soft" not in {_key(plan) for plan in plans}
    with pytest.raises(ModelError, match="is not known to timm"):
        choose_in_pilots(config(model={"backbone": "no_net"}), tmp_path / "x", simulate, lambda line: None)


def test_what_cannot_be_chosen_is_refused_before_anything_runs(told_by, tmp_path):
    _, simulate = told_by({})
    with pytest.raises(ConfigError, match="compares common models; local has none"):
        choose_in_pilots(config(strategy="local"), tmp_path / "run", simulate, lambda line: None)
    with pytest.raises(ConfigError, match="outside the privacy budget: name the group"):
        config(privacy={"target_epsilon": 1.0})
    plan_run(parse_config({"data": {"source": "phantom"}}), tmp_path / "run")
    with pytest.raises(RunError, match="already holds a run"):
        choose_in_pilots(config(), tmp_path / "run", simulate, lambda line: None)


def test_a_choice_that_cannot_be_written_is_told(told_by, tmp_path):
    _, simulate = told_by({"none": 0.80, "soft": 0.80, "C4": 0.80, "D4": 0.80})
    _, choice = choose_in_pilots(config(), tmp_path / "run", simulate, lambda line: None)
    with pytest.raises(RunError, match=r"cannot write .*group.json"):
        keep_choice(choice, tmp_path / "nowhere")


def test_pilots_without_a_common_figure_are_refused(monkeypatch, tmp_path):
    class Reader:
        def __init__(self, path):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def run(self):
            return type("Run", (), {"id": 1})()

        def metrics(self, run_id, split):
            return ()

        def rounds(self, run_id):
            return ()

    monkeypatch.setattr(pilots.apps, "load", lambda reference: Reader)
    with pytest.raises(ConfigError, match="a pilot came to no common validation figure"):
        choose_in_pilots(config(), tmp_path / "run", lambda plan: None, lambda line: None)

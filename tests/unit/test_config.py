"""The description of a run: presets, flags over files, and errors that name the key."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from popmi_core.config import PRESETS, RunConfig, overlay, parse_config, read_config
from popmi_core.errors import ConfigError


def test_a_strategy_is_a_preset_of_four_parts():
    config = parse_config({"strategy": "opm"})
    assert (config.match.method, config.fuse.rule) == ("opm", "circuit")
    assert parse_config({"strategy": "fedavg"}).match.method == "none"


def test_a_part_given_explicitly_wins_over_its_preset():
    config = parse_config({"strategy": "opm", "fuse": {"rule": "average"}, "server_optimizer": {"name": "adam"}})
    assert (config.match.method, config.fuse.rule, config.server_optimizer.name) == ("opm", "average", "adam")


@pytest.mark.parametrize("strategy", sorted(PRESETS))
def test_every_preset_describes_a_run_and_survives_a_round_trip(strategy):
    config = parse_config({"strategy": strategy})
    assert parse_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"strategy": "fedsgd"}, "strategy"),
        ({"rounds": 0}, "rounds"),
        ({"local": {"learning_rate": -1}}, "local.learning_rate"),
        ({"modle": {}}, "modle"),
        ({"model": {"adapter": {"group": "C8"}}}, "model.adapter.group"),
        ({"fuse": {"trim": 0.5}}, "fuse.trim"),
        ({"privacy": {}}, "privacy.target_epsilon"),
        ({"fuse": 3}, "fuse"),
    ],
)
def test_an_unknown_or_impossible_value_is_named(values, named):
    with pytest.raises(ConfigError, match=named):
        parse_config(values)


def test_a_run_description_cannot_be_changed_afterwards():
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().rounds = 3


def test_flags_win_over_the_file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('strategy = "fedavg"\nrounds = 9\n[local]\nepochs = 2\n')
    config = read_config(path, {"rounds": 3, "local": {"batch_size": 16}})
    assert (config.rounds, config.local.epochs, config.local.batch_size) == (3, 2, 16)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.toml"):
        read_config(tmp_path / "absent.toml")


def test_a_file_that_is_no_toml_is_named(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("rounds: 3")
    with pytest.raises(ConfigError, match="is not TOML"):
        read_config(path)


def test_overlay_changes_neither_argument():
    values, changes = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert overlay(values, changes) == {"a": {"b": 1, "c": 2}}
    assert (values, changes) == ({"a": {"b": 1}}, {"a": {"c": 2}})


def test_the_documentation_names_every_key():
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")

    def keys(model):
        for name, field in model.model_fields.items():
            below = [part for part in (field.annotation, *get_args(field.annotation)) if hasattr(part, "model_fields")]
            yield from keys(below[0]) if below else [name]

    assert [key for key in keys(RunConfig) if f"{key} |" not in text] == []

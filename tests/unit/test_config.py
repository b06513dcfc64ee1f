"""The description of a run: presets, flags over files, and errors that name the key."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from popmi_core.config import PRESETS, ModelConfig, RunConfig, Strategy, overlay, parse_config, read_config
from popmi_core.errors import ConfigError


def test_a_strategy_is_a_preset_of_four_parts():
    config = parse_config({"strategy": "opm"})
    assert (config.match.method, config.fuse.rule) == ("opm", "adaptive_circuit")
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
        ({"measure": {"angles": 3}}, "measure.angles"),
        ({"measure": {"lee_images": 4}}, "measure.lee_images"),
        ({"measure": {"turned_images": 4}}, "measure.turned_images"),
        ({"model": {"adapter": {"group": "C8"}}}, "model.adapter.group"),
        ({"model": {"adapter": {"adapters": "lifted"}}}, "model.adapter.adapters"),
        ({"model": {"adapter": {"adapters": "none+lora"}}}, "model.adapter.adapters"),
        ({"model": {"lora": {"rank": 0}}}, "model.lora.rank"),
        ({"model": {"lora": {"alpha": 0}}}, "model.lora.alpha"),
        ({"model": {"lora": {"targets": []}}}, "model.lora.targets"),
        ({"model": {"lora": {"targets": [""]}}}, "model.lora.targets"),
        ({"model": {"lora": {"train": "head"}}}, "model.lora.train"),
        ({"model": {"lora": {"ranks": 4}}}, "model.lora.ranks"),
        ({"fuse": {"trim": 0.5}}, "fuse.trim"),
        ({"privacy": {}}, "privacy.target_epsilon"),
        ({"fuse": 3}, "fuse"),
        ({"fuse": {"regmean_shrink": 1.1}}, "fuse.regmean_shrink"),
        ({"fuse": {"gate": ["best"]}}, "fuse.gate"),
        ({"match": {"method": "learned"}}, "match: learned looks at images.*set match.where = 'site'"),
        ({"match": {"method": "probes"}}, "match: probes run the models.*set match.where = 'site'"),
        ({"fuse": {"rule": "ensemble"}}, "take strategy = 'ensemble'"),
        ({"strategy": "opm", "fuse": {"gate": ["average"]}}, "set match.method = 'none'"),
        ({"strategy": "local", "personal": {"keep_local": ["head"]}}, "strategy local has none to share"),
        ({"strategy": "local", "personal": {"class_prior": "own"}}, "strategy local has none, and models"),
        ({"strategy": "fedma", "personal": {"keep_local": ["head"]}}, "fedma would move the shared part"),
        ({"strategy": "opm", "personal": {"keep_local": ["head"]}}, "server-side matching would move"),
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


def test_a_description_that_says_nothing_of_measuring_reads_as_it_always_did():
    usual = parse_config({}).model_dump(mode="json")
    assert not {"measure", "limits"} & usual.keys()
    assert usual["privacy"] is None
    told = parse_config({"measure": {"turning": "every"}})
    assert told.model_dump(mode="json")["measure"]["turning"] == "every"
    assert parse_config(told.model_dump(mode="json")) == told


def test_every_strategy_has_its_preset():
    assert set(PRESETS) == set(get_args(Strategy))


def test_a_gate_always_tries_the_plain_average_and_nothing_twice():
    config = parse_config({"fuse": {"rule": "opm", "gate": ["opm", "regmean"]}, "match": {"method": "none"}})
    assert config.fuse.rules == ("average", "opm", "regmean")
    assert config.fuse.needs_grams
    assert parse_config({"strategy": "krum"}).fuse.rules == ("krum",)


def test_parts_that_do_not_fit_together_are_told_without_the_whole_table():
    with pytest.raises(ConfigError) as caught:
        parse_config({"fuse": {"rule": "ensemble"}})
    assert "got" not in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "train"),
    [
        ({"lora": {}}, "all"),
        ({"lora": {"train": "adapter"}}, "adapter"),
        ({"lora": {"train": "adapter"}, "adapter": {"group": "C4"}}, "adapter"),
        ({"lora": {}, "adapter": {"group": "C4", "train": "adapter"}}, "adapter"),
        # No PREA is there to ask for anything.
        ({"lora": {}, "adapter": {"group": "none", "train": "adapter"}}, "all"),
        ({}, "all"),
    ],
)
def test_the_backbone_is_frozen_where_either_kind_of_adapter_asks_for_it(parts, train):
    assert ModelConfig(**parts).train == train


def test_an_adapter_of_the_old_kind_is_told_as_before_there_were_others():
    old = {"group": "C4", "merge_block": 1, "weights": "mean", "rank": 8, "train": "all"}
    config = parse_config({"model": {"adapter": {"group": "C4", "merge_block": 1, "adapters": "bottleneck"}}})
    assert config.model_dump(mode="json")["model"]["adapter"] == old
    asked = {"group": "D1", "adapters": "lifted-conv+lora", "allow_approximate": True}
    told = parse_config({"model": {"adapter": asked}}).model_dump(mode="json")
    assert told["model"]["adapter"] == {**old, "merge_block": None, **asked}
    assert parse_config(told).model_dump(mode="json") == told


def test_a_model_without_low_rank_adapters_is_told_as_before_there_were_any():
    assert "lora" not in RunConfig().model_dump_json()
    assert "lora" not in RunConfig().model_dump(mode="json")["model"]
    config = parse_config({"model": {"lora": {"rank": 4, "targets": ["fc1"]}}})
    assert parse_config(config.model_dump(mode="json")) == config

"""What is refused before any site trains (server/planning.py)."""

from __future__ import annotations

import pytest
from torch import nn

from popmi_core.asking import common_rules
from popmi_core.config import parse_config
from popmi_core.errors import ConfigError, ModelError, PrivacyError
from popmi_core.models import build_model
from popmi_core.protocol import Assignment, RunPlan
from server.planning import prepare, require_private

BUDGET = {"target_epsilon": 3.0}
MICRO = {"backbone": "popmi_vit_micro", "image_size": 32}
UNKNOWN = {"backbone": "convmixer_768_32", "image_size": 32}


def plan(num_sites: int = 2, **parts) -> RunPlan:
    return RunPlan(
        run="r",
        config=parse_config(
            {"strategy": "fedavg", "model": {"backbone": "popmi_vit_micro", "image_size": 32}, **parts}
        ),
        folder="f",
        data_name="skin",
        phantom=False,
        classes=("x", "y"),
        lineup=tuple(Assignment(site=f"s{n}", data=("d",), state="s") for n in range(num_sites)),
    )


def prepared(plan: RunPlan, model: nn.Module | None = None):
    return prepare(plan, model or build_model(plan.config.model, 2, seed=0))


def test_the_symmetries_are_known_whether_or_not_they_are_needed():
    assert prepared(plan()).spaces
    assert prepared(plan(strategy="opm")).spaces


class Odd(nn.Module):
    """An architecture that nobody has described."""

    def __init__(self) -> None:
        super().__init__()
        self.strange = nn.Bilinear(2, 2, 2)


def test_a_rule_without_symmetries_works_on_any_architecture():
    assert prepared(plan(model=UNKNOWN), Odd()) is None


@pytest.mark.parametrize(
    "parts",
    [
        {"strategy": "opm"},
        {"strategy": "git-rebasin"},
        {"fuse": {"gate": ["opm"]}},
        {"match": {"method": "permutations", "where": "site"}},
    ],
    ids=["match", "rule", "gate", "at the site"],
)
def test_matching_an_architecture_without_a_description_is_refused(parts):
    with pytest.raises(ModelError, match="Odd"):
        prepared(plan(**parts, model=UNKNOWN), Odd())


def test_krum_needs_its_sites_in_the_plan_already():
    with pytest.raises(ConfigError, match=r"krum needs at least 7 sites \(fuse.faulty = 2\), but the run has 6"):
        prepared(plan(6, strategy="krum", fuse={"faulty": 2}))
    prepared(plan(7, strategy="krum", fuse={"faulty": 2}))


def test_a_batchnorm_that_trains_is_refused_a_budget_and_a_frozen_one_is_not():
    norms = plan(model={"backbone": "popmi_resnet20", "image_size": 32}, privacy=BUDGET)
    with pytest.raises(PrivacyError, match=r"'bn1' of popmi_resnet20 is a BatchNorm"):
        prepared(norms)
    lora = {"targets": ["fc"], "rank": 2, "train": "adapter"}
    prepared(plan(model={"backbone": "popmi_resnet20", "image_size": 32, "lora": lora}, privacy=BUDGET))
    model = build_model(norms.config.model, 2, seed=0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    prepared(norms, model)


@pytest.mark.parametrize(
    ("pattern", "said"), [("nose", "'nose' fits no tensor of popmi_vit_micro"), ("?", "fits every tensor")]
)
def test_patterns_of_kept_parts_must_leave_something_on_both_sides(pattern, said):
    with pytest.raises(ConfigError, match=said):
        prepared(plan(personal={"keep_local": [pattern]}))


def test_where_every_site_keeps_its_own_model_no_rule_is_used():
    assert common_rules(plan(strategy="ensemble").config) == ()
    assert common_rules(plan(strategy="local").config) == ()
    assert common_rules(plan(strategy="opm-gated").config)[0] == "average"


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"strategy": "opm-learned"}, "match.method = 'learned'"),
        ({"match": {"method": "activations", "where": "site"}}, "match.method = 'activations'"),
        ({"strategy": "opm-gated"}, "fuse.gate with opm_regmean or regmean"),
        ({"fuse": {"repair": True}}, "fuse.repair"),
    ],
)
def test_parts_that_look_at_images_without_noise_are_refused_a_privacy_budget(parts, named):
    require_private(parse_config(parts))
    with pytest.raises(PrivacyError, match=named):
        require_private(parse_config({**parts, "privacy": {"target_epsilon": 3.0}}))


def test_matching_weights_at_the_site_keeps_the_privacy_promise():
    parts = {"strategy": "opm", "match": {"where": "site"}, "privacy": {"target_epsilon": 3.0}}
    config = parse_config(parts)
    require_private(config)
    assert (config.match.where, config.match.uses_images) == ("site", False)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"strategy": "lowrank"}, "it has none"),
        ({"fuse": {"gate": ["lowrank"]}}, "it has none"),
        ({"strategy": "lowrank", "model": {**MICRO, "adapter": {"group": "C4"}}}, "it has none"),
        (
            {"strategy": "lowrank", "model": {**MICRO, "lora": {}}, "personal": {"keep_local": ["lora_"]}},
            "they stay at the sites",
        ),
    ],
    ids=["none", "gate", "PREA is no product", "kept at home"],
)
def test_products_are_averaged_only_where_there_are_some(parts, why):
    with pytest.raises(ConfigError, match=rf"popmi_vit_micro no site sends any: {why}.*Set model\.lora"):
        prepared(plan(**parts))


@pytest.mark.parametrize("train", ["all", "adapter"])
def test_products_are_averaged_where_low_rank_adapters_travel(train):
    assert prepared(plan(strategy="lowrank", model={**MICRO, "lora": {"rank": 2, "train": train}})).spaces

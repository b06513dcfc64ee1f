"""A real round sends exactly what `popmi site dry-run` listed before, and what check-data said in words."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from flwr.app import Message
from site_parts import make_home, make_kit

from client.app import app as client_app
from client.reply import unpacked
from client.site.dryrun import DryRun, Step, dry_run
from client.site.leaving import PARTS, what_leaves
from popmi_core.asking import EVALUATING, JOINING, JUDGING, MEASURING, TRAINING, Asks, Part
from popmi_core.config import PRESETS, RunConfig
from popmi_core.protocol import JSON_KEY, REPORT, SCORES_PREFIX

SITE = "phantom_ruler"
TWO = ["phantom_polarised", SITE]
MICRO = {"backbone": "popmi_vit_micro", "image_size": 16}
BATCH_NORM = {"backbone": "resnet10t", "image_size": 32}
LOW_RANK = {**MICRO, "lora": {"rank": 2}}
BY_ACTIVATIONS = {"method": "activations", "where": "site", "num_images": 20}
SPECIAL: dict[str, dict[str, Any]] = {
    "opm-learned": {"match": {"learn_steps": 2}},
    "lowrank": {"model": LOW_RANK},
    "krum": {"fuse": {"faulty": 0}, "sites": [*TWO, "phantom_slide"]},
}
# Strategy pooled asks no site to train: `popmi server` refuses it.
CASES: dict[str, dict[str, Any]] = {
    **{name: {"strategy": name, **SPECIAL.get(name, {})} for name in sorted(set(PRESETS) - {"pooled"})},
    "own class mix": {"personal": {"class_prior": "own"}},
    "kept head": {"personal": {"keep_local": ["head"]}},
    "control variates": {"local": {"objective": "control_variates"}},
    "control variates and a kept head": {
        "local": {"objective": "control_variates"}, "personal": {"keep_local": ["head"]},
    },
    "gate": {"fuse": {"gate": ["uniform_soup"]}},
    "repair": {"model": BATCH_NORM, "fuse": {"repair": True}},
    "repair and a gate": {"model": BATCH_NORM, "fuse": {"repair": True, "gate": ["average"]}},
    "repair of a model without such layers": {"fuse": {"repair": True}},
    "repair of what nobody fuses": {"strategy": "local", "model": BATCH_NORM, "fuse": {"repair": True}},
    "statistics of what nobody fuses": {"strategy": "local", "fuse": {"rule": "regmean", "gate": ["average"]}},
    "statistics of activations": {"fuse": {"rule": "git_rebasin_activations"}, "match": {"num_images": 20}},
    "matched at the site by activations": {"match": BY_ACTIVATIONS},
    "matched at the site by probes": {"match": {"method": "probes", "where": "site"}},
    "nothing measured beside figures": {"measure": {"turning": "never", "train_figures": "never"}},
    "budget": {"privacy": {"target_epsilon": 8.0, "target_delta": 1e-3}},
    "adapters only": {"model": {**MICRO, "lora": {"rank": 2, "train": "adapter"}}},
    "equivariant adapters only": {"model": {**MICRO, "adapter": {"group": "C4", "train": "adapter"}}},
}  # fmt: skip

Form = frozenset[tuple[object, ...]]


def config_of(case: str) -> dict[str, Any]:
    described = {"strategy": "fedavg", "sites": TWO, "model": MICRO, **CASES[case]}
    return {**described, "rounds": 1, "local": {"batch_size": 32, **described.get("local", {})}}


def figures_in(told: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for name, value in told.items():
        if isinstance(value, dict):
            yield from figures_in(value, f"{above}{name}.")
        elif above or value not in (None, [], ""):
            yield f"{above}{name}"


def tensor_line(record: str, name: str, shape: tuple[int, ...], dtype: str) -> tuple[object, ...]:
    # A histogram has as many runs of cells as the scores of the model make, and another model has other scores.
    return record, name, len(shape) if record.startswith(SCORES_PREFIX) else shape, dtype


def form_of_step(step: Step) -> Form:
    tensors = (tensor_line(item.record, item.name, item.shape, item.dtype) for item in step.tensors)
    return frozenset([*tensors, *(("figure", name) for name in figures_in(step.figures))])


def form_of_answer(answer: Message) -> Form:
    content = unpacked(answer.content)
    report = json.loads(str(content.config_records[REPORT][JSON_KEY]))
    assert report["error"] is None
    tensors = (
        tensor_line(record, name, array.shape, str(array.dtype))
        for record, arrays in content.array_records.items()
        for name, array in ((name, item.numpy()) for name, item in arrays.items())
    )
    return frozenset([*tensors, *(("figure", name) for name in figures_in(report))])


def parts_in(heard: Mapping[str, set[Form]]) -> set[Part]:
    """Return what was really sent beyond model, loss and figures, in the words of ``Asks.parts``."""
    (joined,), (trained,), (evaluated,) = heard[JOINING], heard[TRAINING], heard[EVALUATING]
    records = {line[0] for line in trained}
    found: dict[Part, bool] = {
        "class_counts": ("figure", "class_counts") in joined,
        "epsilon": ("figure", "epsilon") in trained,
        "control": "control_change" in records,
        "gram": "grams" in records,
        "activations": "activations" in records,
        "matching": any(line[0] == "figure" and str(line[1]).startswith("gains.") for line in trained),
        "judged": JUDGING in heard,
        "norms": MEASURING in heard,
        "turned": any(line[0] == "figure" and str(line[1]).startswith("turned.") for line in evaluated),
        "trained_on": any(line[0] == "scores.train" for line in evaluated),
    }
    return {part for part, sent in found.items() if sent}


@pytest.mark.parametrize("case", CASES)
def test_a_round_sends_what_the_dry_run_lists_and_nothing_else(federation, tmp_path, case):
    plan = federation.plan(**config_of(case))
    home = make_home(tmp_path / "site", make_kit(site=SITE), data=f"phantom:{SITE}")
    listed: DryRun = dry_run(home, plan.config)
    heard: dict[str, set[Form]] = defaultdict(set)

    def app(message, context):
        kind = message.metadata.message_type
        answer = client_app(message, context)
        if context.node_config["site"] == SITE:
            heard[kind].add(form_of_answer(answer))
        return answer

    federation.run(plan, app)

    # All answers to one kind of question look alike, and like the one listed.
    assert {kind: list(forms) for kind, forms in heard.items()} == {
        step.question: [form_of_step(step)] for step in listed.steps
    }
    names = [item.name for step in listed.steps for item in step.tensors if item.record == "model"]
    assert parts_in(heard) == set(Asks.of(plan.config, names).parts)
    assert not set(listed.stays) & set(names)


@pytest.mark.parametrize("case", CASES)
def test_what_leaves_in_words_is_what_is_asked_for(case):
    config = RunConfig.model_validate(config_of(case))
    told = " ".join(what_leaves({}, config))
    assert {part for part, (_, what) in PARTS.items() if what in told} == set(Asks(config).parts)

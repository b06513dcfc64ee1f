"""How much an answer may weigh, and how large what sites measure may be (server/replies.py, rounds/validate.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.supercore.task_identity import TaskIdentity
from site_answers import GLOBAL, answer, outcome

from popmi_core.matching import Symmetry
from popmi_core.matching.symmetry import Space, Tap
from popmi_core.protocol import ACTIVATIONS, CONTROL_CHANGE, GRAMS, MODEL
from server.replies import SPARE_BYTES, Expected, layout_of
from server.rounds.validate import MOST_MOMENT, MOST_SUM, validate
from server.wire import tensor_record


@pytest.fixture(autouse=True)
def _identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def with_grams(**grams) -> dict[str, ArrayRecord]:
    return {MODEL: tensor_record(LINEAR), GRAMS: tensor_record(grams)}


LINEAR = {"fc.weight": torch.zeros(2, 3), "fc.bias": torch.zeros(2), "conv.weight": torch.zeros(4, 2, 3, 3)}


def gram_outcome(records):
    asked = Expected("r", 2, layout_of(LINEAR), {"m-a": "a"}, grams=True)
    result = validate([answer(records)], asked)
    return result, result.outcomes[0]


def test_gram_matrices_of_linear_layers_and_of_convolutions_patches_are_taken():
    result, told = gram_outcome(with_grams(fc=torch.eye(3), conv=torch.eye(18)))
    assert told.outcome == "ok"
    assert {name: tuple(gram.shape) for name, gram in result.updates[0].grams.items()} == {
        "fc": (3, 3),
        "conv": (18, 18),
    }


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ({MODEL: tensor_record(LINEAR)}, "holds no Gram matrices"),
        (with_grams(fc=torch.eye(2)), "expected a float matrix of the layer's 3 inputs"),
        (with_grams(fc=torch.eye(3, dtype=torch.int64)), "expected a float matrix"),
        (with_grams(stray=torch.eye(3)), "the Gram matrix of 'stray'"),
        (with_grams(fc=torch.full((3, 3), float("inf"))), "'fc' holds 9 NaN or infinite of 9 values"),
    ],
    ids=["missing", "shape", "whole numbers", "unknown layer", "infinite"],
)
def test_gram_matrices_that_do_not_fit_put_their_site_aside(records, reason):
    result, told = gram_outcome(records)
    assert (told.outcome, result.updates) == ("quarantined", [])
    assert reason in told.reason


def test_activation_statistics_that_do_not_fit_put_their_site_aside():
    symmetry = Symmetry("chain", {}, ())
    asked = Expected("r", 2, layout_of(GLOBAL), {"m-a": "a"}, seen=symmetry)
    stray = ArrayRecord({"stream|cross": Array(np.zeros((2, 2)))})
    result = validate([answer({MODEL: tensor_record(GLOBAL), ACTIVATIONS: stray})], asked)
    assert "statistics hold or lack 'stream|cross'" in result.outcomes[0].reason


def test_a_control_variate_far_beyond_the_model_s_norm_is_refused_with_both():
    start = {name: torch.ones_like(tensor) for name, tensor in GLOBAL.items()}
    records = {MODEL: tensor_record(start), CONTROL_CHANGE: tensor_record({"w": torch.full((2, 3), 1e20)})}
    told = outcome(answer(records), control=True, reference=start, max_change=100.0)[1]
    # Nine ones: the model's norm is 3. The norm of six 1e20 overflows in float32 and not here.
    assert told.outcome == "quarantined"
    assert "the control variate changed by 2.45e+20 (Euclidean norm), expected at most 300" in told.reason
    near = {MODEL: tensor_record(start), CONTROL_CHANGE: tensor_record({"w": torch.full((2, 3), 100.0)})}
    assert outcome(answer(near), control=True, reference=start, max_change=100.0)[1].outcome == "ok"


def test_gram_matrices_no_activation_can_have_put_their_site_aside():
    assert gram_outcome(with_grams(fc=torch.eye(3) * MOST_MOMENT))[1].outcome == "ok"
    told = gram_outcome(with_grams(fc=torch.eye(3) * -1.1e12))[1]
    assert told.outcome == "quarantined"
    assert "the Gram matrix of 'fc' holds 1.1e+12, expected at most 1e+12 in size" in told.reason


def test_activation_statistics_no_activation_can_have_put_their_site_aside(monkeypatch):
    monkeypatch.setattr("server.rounds.validate.from_arrays", lambda arrays, symmetry, site: arrays)
    asked = Expected("r", 2, layout_of(GLOBAL), {"m-a": "a"}, seen=Symmetry("chain", {}, ()))
    for size, fared in ((MOST_SUM, "ok"), (2 * MOST_SUM, "quarantined")):
        record = ArrayRecord({"s|cross": Array(np.full((2, 2), size))})
        (told,) = validate([answer({MODEL: tensor_record(GLOBAL), ACTIVATIONS: record})], asked).outcomes
        assert told.outcome == fared
    assert "the statistic 's|cross' holds 2e+18, expected at most 1e+18 in size" in told.reason


def test_what_an_answer_may_weigh_is_known_for_every_question():
    layout = layout_of(LINEAR)
    model = 4 * (6 + 2 + 4 * 18)
    assert Expected("r", 2, layout, {}).most_bytes == model + SPARE_BYTES
    assert Expected("r", 2, layout, {}, control=True).most_bytes == 2 * model + SPARE_BYTES
    assert Expected("r", 2, layout, {}, grams=True).most_bytes == model + 8 * (9 + 18**2) + SPARE_BYTES
    assert Expected("r", 2, layout, {}, model=False, scores=7).most_bytes == 7 + SPARE_BYTES
    space = Space("s", "permutation", 3)
    seen = Symmetry("chain", {"s": space}, (), taps=(Tap("fc", "output", 1, "s"),))
    # One count, two sums of 3, 3 by 3, and twice 3 squares.
    assert Expected("r", 2, layout, {}, seen=seen).most_bytes == model + 8 * (1 + 6 + 9 + 6) + SPARE_BYTES


@pytest.mark.parametrize("asked", [{"grams": True}, {"seen": Symmetry("chain", {}, ())}])
def test_a_reply_with_statistics_has_a_limit_too(asked):
    heavy = {MODEL: tensor_record({**GLOBAL, "w": torch.zeros(2_000_000)})}
    assert "bytes, expected at most" in outcome(answer(heavy), **asked)[1].reason


@pytest.mark.parametrize(
    "record", [ConfigRecord({"x": "y" * 5_000_000}), MetricRecord({"x": [0.5] * 700_000})], ids=["texts", "figures"]
)
def test_texts_and_figures_count_as_much_as_tensors(record):
    told = outcome(answer({MODEL: tensor_record(GLOBAL), "more": record}))[1]
    assert told.outcome == "quarantined"
    assert "bytes, expected at most 4000036" in told.reason

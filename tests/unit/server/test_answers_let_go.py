"""What sites answer when they evaluate or measure goes with its last holder (server/rounds/evaluate.py, repair.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.supercore.task_identity import TaskIdentity
from held import Watched, no_search_for_garbage
from site_answers import answer

from popmi_core.metrics import summarise_scores
from popmi_core.protocol import NORMS, SCORES_PREFIX
from server.replies import Expected, layout_of
from server.rounds.evaluate import collect
from server.rounds.repair import collect_norms
from server.wire import packed

STATE = {"n.running_mean": torch.zeros(2), "n.running_var": torch.ones(2)}
NORMS_OF = {"n.mean": np.ones(2), "n.var": np.ones(2), "n.count": np.array(5.0)}


@pytest.fixture(autouse=True)
def _identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def record(arrays, *, damaged: str | None = None, packs: bool = False) -> ArrayRecord:
    made = ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})
    if damaged is not None:
        made[damaged] = Array(dtype="float64", shape=(2,), stype="numpy.ndarray", data=b"nonsense")
    return packed(made) if packs else made


def scores() -> dict[str, np.ndarray]:
    target = np.arange(60) % 2
    return summarise_scores(np.random.default_rng(0).dirichlet((1, 1), 60), target).to_arrays()


def judged(**changes):
    records = {f"{SCORES_PREFIX}val": record(scores(), **changes)}
    return answer(records, num_examples=0, split_sizes={"val": 60}, metrics={"val.nll": 0.5})


def measured(**changes):
    return answer({NORMS: record(NORMS_OF, **changes)})


def outcomes_of(kind: str, message) -> list[str]:
    asked = Expected("r", 2, layout_of(STATE), {"m-a": "a"})
    if kind == "judged":
        _, outcomes = collect([message], asked, ("val",), num_classes=2)
    else:
        _, outcomes = collect_norms([message], asked, STATE)
    return [item.outcome for item in outcomes]


@pytest.mark.parametrize(
    ("kind", "changes", "outcome"),
    [
        ("judged", {}, "ok"),
        ("judged", {"packs": True}, "ok"),
        ("judged", {"damaged": "header"}, "quarantined"),
        ("measured", {}, "ok"),
        ("measured", {"packs": True}, "ok"),
        ("measured", {"damaged": "n.mean"}, "quarantined"),
    ],
)
def test_an_answer_goes_at_once_and_not_when_garbage_is_looked_for(kind, changes, outcome):
    message = judged(**changes) if kind == "judged" else measured(**changes)
    came = Watched(message.content)
    with no_search_for_garbage():
        assert outcomes_of(kind, message) == [outcome]
        # Unpacked, it holds other records than came.
        opened = Watched(message.content)
        del message
        assert came.held() == []
        assert opened.held() == []

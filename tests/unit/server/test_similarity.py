"""How alike updates are: cosines and norms against the model they started from, from memory and from files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from popmi_core.checkpoints import FileState
from server.results import MatchedUpdate
from server.similarity import MOST_SITES, Likeness, similarity_of


def states(count: int) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    reference = {
        "w": torch.randn(300, 700, generator=generator), "b": torch.randn(5, generator=generator),
        "s": torch.tensor(0.5), "bn.running_var": torch.ones(5), "bn.num_batches_tracked": torch.tensor(3),
    }  # fmt: skip

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return tensor + (torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else 1)

    return reference, [{name: moved(tensor) for name, tensor in reference.items()} for _ in range(count)]


def flat(state, reference) -> np.ndarray:
    changes = [state[name].double() - reference[name].double() for name in ("w", "b", "s")]
    return np.concatenate([change.numpy().ravel() for change in changes])


def test_cosines_and_norms_are_those_of_the_flattened_changes():
    reference, moved = states(3)
    found = similarity_of([MatchedUpdate(f"s{k}", state, 5) for k, state in enumerate(moved)], reference)
    changes = np.stack([flat(state, reference) for state in moved])
    norms = np.linalg.norm(changes, axis=1)
    assert found["sites"] == ["s0", "s1", "s2"]
    # Float64 throughout; only the order of sums differs.
    assert np.allclose(found["norms"], norms, rtol=1e-12)
    assert np.allclose(found["cosine"], changes @ changes.T / np.outer(norms, norms), atol=1e-12)
    assert [found["cosine"][k][k] for k in range(3)] == [1.0] * 3


def test_models_in_files_give_the_same_and_are_read_in_part(tmp_path, monkeypatch):
    reference, moved = states(2)
    for number, state in enumerate(moved):
        save_file(state, tmp_path / f"{number}.safetensors")
    filed = [MatchedUpdate(f"s{k}", FileState(tmp_path / f"{k}.safetensors"), 5) for k in range(2)]
    rows = FileState.rows
    largest = []

    def watched(self, name, start, stop):
        part = rows(self, name, start, stop)
        largest.append(part.numel())
        return part

    monkeypatch.setattr(FileState, "rows", watched)
    held = [MatchedUpdate(f"s{k}", state, 5) for k, state in enumerate(moved)]
    assert similarity_of(filed, reference) == similarity_of(held, reference)
    assert max(largest) <= 65_536 < reference["w"].numel()


def test_an_update_that_changes_nothing_has_no_direction():
    reference, moved = states(1)
    found = similarity_of([MatchedUpdate("a", moved[0], 5), MatchedUpdate("b", dict(reference), 5)], reference)
    assert found["cosine"][0] == [1.0, None]
    assert found["cosine"][1] == [None, None]
    assert found["norms"][1] == 0.0


@pytest.mark.parametrize("count", [0, 1, MOST_SITES + 1])
def test_one_site_and_very_many_are_not_compared(count):
    reference, _ = states(0)
    assert similarity_of([MatchedUpdate(f"s{k}", reference, 5) for k in range(count)], reference) is None


def test_that_there_are_too_many_sites_is_said_once():
    reference, said = states(0)[0], []
    likeness = Likeness(said.append)
    many = [MatchedUpdate(f"s{k}", reference, 5) for k in range(MOST_SITES + 1)]
    assert [likeness(many, reference), likeness(many, reference)] == [None, None]
    assert said == ["the similarity of updates was not measured: 65 sites, at most 64 are compared pair by pair"]
    assert likeness(many[:2], reference)["sites"] == ["s0", "s1"]

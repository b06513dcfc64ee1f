"""How alike the sites' updates are: cosines and norms of what each would change, as the average takes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from popmi_core.checkpoints import rows_of
from server.results import MatchedUpdate

MOST_SITES = 64
TOO_MANY = "the similarity of updates was not measured: {} sites, at most {} are compared pair by pair"
# What layers remember of images (BatchNorm) is no direction of training, and its size would drown the rest.
REMEMBERED = ("running_mean", "running_var", "num_batches_tracked")
CHUNK = 65_536
"""Numbers of every site's tensor that are held at once in float64."""


class Likeness:
    """Compares the updates of one round after another; that there are too many sites is said once.

    Args:
        warn: Hears of it.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn, self._told = warn, False

    def __call__(self, updates: Sequence[MatchedUpdate], reference: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Return what ``similarity_of`` returns."""
        if len(updates) > MOST_SITES and not self._told:
            self._warn(TOO_MANY.format(len(updates), MOST_SITES))
            self._told = True
        return similarity_of(updates, reference)


def similarity_of(updates: Sequence[MatchedUpdate], reference: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return cosines between the sites' changes against ``reference`` and their Euclidean norms, in float64.

    Models may lie in files: a few rows of a tensor are read at a time. A cosine with an update that changes nothing is
    None. None altogether of fewer than two sites, or of more than ``MOST_SITES``.
    """
    if not 2 <= len(updates) <= MOST_SITES:
        return None
    products = torch.zeros(len(updates), len(updates), dtype=torch.float64)
    for name, before in reference.items():
        if not before.is_floating_point() or name.endswith(REMEMBERED):
            continue
        for changes in _chunks([update.state for update in updates], name, before):
            products += changes @ changes.T
    norms = products.diagonal().sqrt()
    cosine = products / norms[:, None] / norms[None, :]
    sites = [update.site for update in updates]
    told = [[_cosine(row, column, cosine) for column in range(len(sites))] for row in range(len(sites))]
    return {"sites": sites, "cosine": told, "norms": norms.tolist()}


def _chunks(states: Sequence[Mapping[str, Tensor]], name: str, before: Tensor) -> Iterator[Tensor]:
    """Yield the sites' changes of some rows of a tensor, one site a row, in float64."""
    if before.ndim == 0:
        yield torch.stack([state[name].double() - before.double() for state in states])[:, None]
        return
    step = max(1, CHUNK * len(before) // max(before.numel(), 1))
    for begin in range(0, len(before), step):
        end, start = min(begin + step, len(before)), before[begin : begin + step].double()
        yield torch.stack([(rows_of(state, name, begin, end).double() - start).flatten() for state in states])


def _cosine(row: int, column: int, cosine: Tensor) -> float | None:
    value = float(cosine[row, column])
    if math.isnan(value):
        return None
    # A site with itself is 1 whatever the last digit says.
    return 1.0 if row == column else min(max(value, -1.0), 1.0)

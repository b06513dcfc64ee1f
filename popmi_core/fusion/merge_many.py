"""Permutation coordinate descent for two models, and MergeMany for more (Git Re-Basin, arXiv:2209.04836)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from popmi_core.fusion.permutable import ORDER, Permutable, Visit, crossed, forward_order, move
from popmi_core.fusion.transport import as_move, assign, solve
from popmi_core.fusion.update import State
from popmi_core.matching.symmetry import Axis

# Gains below this share of the inner product are rounding: without it equal units could change places for ever.
_ROUNDING = 1e-6
# Far more than ever needed: each sweep strictly improves, and a handful is usual.
_SWEEPS = 100


def match_weights(
    target: State,
    state: State,
    group: Permutable,
    generator: torch.Generator,
    *,
    starts: int = 4,
    held: Collection[str] = (),
) -> dict[str, Tensor]:
    """Return the state with its units in the order closest to the target (Algorithm 1).

    Maximises the inner product of all weights, one space at a time in random order, each exactly, until none improves.
    The paper starts at the identity, from where a planted permutation is often not found; so one of the starts is a
    pass from the pixels on, in which every space is matched by what its units receive from spaces matched before. Of
    all starts the best inner product is kept. If the identity cannot be improved it is the answer.

    Args:
        target: The model to come close to.
        state: The model to permute; it is not changed.
        group: What may move.
        generator: Draws the orders.
        starts: How many descents, at least 1.
        held: Spaces that stay as they are.
    """
    free = [space for space in group.spaces if space not in held]
    best = descend(target, state, group, generator, free)
    if not starts > 1 or not _moved(state, best):
        return best
    passed: State = state
    for visit in forward_order(group, state, arriving=True):
        if visit.space in free:
            passed = improve(target, passed, group, visit.space, visit.axes) or passed
    others = [descend(target, passed, group, generator, free)]
    others += [descend(target, state, group, generator, free) for _ in range(starts - 2)]
    # max() keeps the first of equals, so that a tie never depends on rounding in a later start.
    return max((best, *others), key=lambda found: likeness(target, found, group))


def descend(
    target: State, state: State, group: Permutable, generator: torch.Generator, spaces: Sequence[str]
) -> dict[str, Tensor]:
    """Return the state after coordinate descent over these spaces; no space alone can improve it."""
    current = dict(state)
    for _ in range(_SWEEPS):
        improved = False
        for index in torch.randperm(len(spaces), generator=generator).tolist():
            better = improve(target, current, group, spaces[index], group.axes(spaces[index]))
            improved, current = improved or better is not None, better or current
        if not improved:
            break
    return current


def improve(
    target: State, state: State, group: Permutable, space: str, axes: Sequence[Axis]
) -> dict[str, Tensor] | None:
    """Return the state with one space in its best order by these axes; None if no order is better than its own."""
    scores = crossed(target, state, group, axes)
    keys = group.keys(space)
    plans = solve(group.spaces[space], {part: -score for part, score in scores.items()}, assign, keys)
    moves = {keys[part]: made for part, plan in plans.items() if (made := as_move(plan)) is not None}
    if not moves:
        return None
    changed = move(state, group, moves)
    # Measured, not predicted: a layer from a space into itself moves on both sides.
    gain = _inner(target, changed, axes) - _inner(target, state, axes)
    scale = sum(float(score.diagonal().abs().sum()) for score in scores.values())
    return changed if gain > _ROUNDING * scale else None


def merge_many(
    target: State, states: Sequence[State], group: Permutable, generator: torch.Generator, *, starts: int = 4
) -> list[dict[str, Tensor]]:
    """Return all states in one basis (Algorithm 3): each in turn is matched to the mean of the others.

    The paper starts with the models as they are, whose mean says little. Here they start in the basis of ``target``:
    two are matched to it; more are matched layer by layer from the pixels on, each to the mean of the others.
    Ends when no model moves; the distances to the mean strictly fall till then.
    """
    if len(states) < 3:
        aligned = [match_weights(target, state, group, generator, starts=starts) for state in states]
    else:
        aligned = [dict(state) for state in states]
        for visit in forward_order(group, target, arriving=True):
            aligned = match_space(target, aligned, group, visit)
    if len(aligned) < 2:
        return aligned
    names = sorted({axis.tensor for axis in group.units.axes if axis.counts})
    total = {name: torch.stack([state[name].double() for state in aligned]).sum(dim=0) for name in names}
    for _ in range(_SWEEPS):
        improved = False
        for index in torch.randperm(len(aligned), generator=generator).tolist():
            own = aligned[index]
            mean = {name: ((total[name] - own[name]) / (len(aligned) - 1)).to(own[name].dtype) for name in names}
            found = descend(mean, own, group, generator, list(group.spaces))
            if _moved(own, found):
                improved, aligned[index] = True, found
                total = {name: total[name] - own[name] + found[name] for name in names}
        if not improved:
            break
    return aligned


def match_space(
    reference: State, states: Sequence[dict[str, Tensor]], group: Permutable, visit: Visit
) -> list[dict[str, Tensor]]:
    """Return all states with one space matched: to the reference first, then each to the mean of the others."""
    matched = [improve(reference, state, group, visit.space, visit.axes) or state for state in states]
    names = sorted({axis.tensor for axis in visit.axes})
    for _ in range(_SWEEPS if len(matched) > 1 else 0):
        improved = False
        for index, own in enumerate(matched):
            others = [state for other, state in enumerate(matched) if other != index]
            mean = {n: torch.stack([state[n].double() for state in others]).mean(0).to(own[n].dtype) for n in names}
            found = improve(mean, own, group, visit.space, visit.axes)
            if found is not None:
                improved, matched[index] = True, found
        if not improved:
            break
    return matched


def likeness(target: State, state: State, group: Permutable) -> float:
    """Return the inner product of two models over all tensors that say which unit is which."""
    return _inner(target, state, [axis for axis in group.units.axes if axis.counts])


def _inner(first: State, second: State, axes: Sequence[Axis]) -> float:
    return sum(float((first[n].double() * second[n].double()).sum()) for n in sorted({axis.tensor for axis in axes}))


def _moved(before: State, after: State) -> bool:
    return any(not torch.equal(after[name], before[name]) for name in after if name.endswith(ORDER))

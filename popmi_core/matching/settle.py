"""From the balanced bases in which the descent runs back to the weights as they are: move only what pays."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from popmi_core.matching.blocks import HeadBlock, OrderBlock, head_rows, is_identity
from popmi_core.matching.descent import Position, Target, worth_turning
from popmi_core.matching.elements import Element, Move, act, act_in_place, read_axis
from popmi_core.matching.symmetry import State, Symmetry

# Units in their places get the reference's scales only where that takes off half the distance: less is drift.
_CLEARLY_SCALED = 0.5
_ROUNDING = 1e-10
# Units that changed places lie as far apart as any two; those that drifted by a third of their size, a tenth of that.
_DRIFT = 0.5


@dataclass(frozen=True)
class Bases:
    """The balancing moves of the reference and of the candidate."""

    own: Element
    candidate: Element


def settle(position: Position, target: Target, bases: Bases, candidate: State) -> tuple[Element, dict[str, float]]:
    """Return the group element of a position, and each space's gain with all other moves in place.

    ``candidate`` is canonical but not balanced.
    """
    moves: dict[str, Move] = {}
    gains: dict[str, float] = {}
    symmetry, kin = target.symmetry, position.same_basis or position.kin
    outside = Element({n: m for n, m in position.moves.items() if symmetry.spaces[n].kind != "heads"})

    def still(space: str) -> State:
        """Return what an unmoved space looks like to the reference: only the others' moves made, in its bases."""
        names = {axis.tensor for axis in symmetry.of(space)}
        part = replace(symmetry, axes=tuple(axis for axis in symmetry.axes if axis.tensor in names))
        state = act({n: candidate[n] for n in names}, part, _without_scales(outside))
        act_in_place(state, part, bases.own)
        return state

    for name, space in symmetry.spaces.items():
        move = position.moves.get(name, Move())
        if space.kind == "heads":
            found, gains[name] = _settle_heads(name, move, target, bases, position.state, still(name), kin=kin)
            if found is not None:
                moves[name] = found
        elif space.kind == "orthogonal":
            gains[name] = _gain(target, position, name, move)
            if move.rotation is not None:
                moves[name] = move
        else:
            gains[name] = _gain(target, position, name, move)
            scale = _rescaled(name, move, bases)
            if move.perm is not None and not is_identity(move.perm):
                moves[name] = replace(move, scale=scale)
            elif scale is not None and (gain := _gain_of_scales(target, position, name, still(name))) > _CLEARLY_SCALED:
                moves[name], gains[name] = Move(scale=scale), gain
    return Element(moves), gains


def drifted_orders(position: Position, target: Target) -> set[str]:
    """Return the spaces in which kin's units seem to change places only because they have drifted.

    Where units lie close together (Swin V2's position networks: 512 units of five numbers) the nearest after a little
    training is often another one. What tells is how far the units that moved lay from their old places: squared, less
    than half of what two units of the reference lie apart on average is drift, and they are the units they were.
    """
    return {
        name
        for name, block in target.blocks.items()
        if isinstance(block, OrderBlock) and name in position.moves and _drifted(block, position, target)
    }


def _drifted(block: OrderBlock, position: Position, target: Target) -> bool:
    move, axes = position.moves[block.name], target.symmetry.of(block.name)
    if move.perm is None or is_identity(move.perm):
        return False
    tensors = {axis.tensor: position.state[axis.tensor] for axis in axes}
    placed = act(tensors, replace(target.symmetry, axes=axes), Element({block.name: inverse(move)}))
    moved = move.perm != torch.arange(len(move.perm))
    apart = torch.zeros(len(move.perm), dtype=torch.float64)
    for axis in (axis for axis in axes if axis.counts):
        rows = read_axis(target.reference[axis.tensor], axis, block.space).double()
        spread = (rows - rows.mean(dim=0)).square().sum(dim=1)
        apart += spread + spread.mean()
    return bool(block.distances(placed)[moved].sum() < _DRIFT * apart[moved].sum())


def gain_of(before: float, after: float) -> float:
    """Return the share of a squared distance that went away, 0 to 1 (0 where there was none)."""
    return max(0.0, 1 - after / before) if before > 0 else 0.0


def _gain(target: Target, position: Position, name: str, move: Move) -> float:
    """Return the gain of one space's own move: undo it alone and compare the tensors it touches."""
    if move.perm is None and move.rotation is None:
        return 0.0
    axes, back = target.symmetry.of(name), Element({name: inverse(move)})
    before = after = 0.0
    # Tensor by tensor: a stream touches them all, and a further model is not to be held.
    for tensor in sorted({axis.tensor for axis in axes if axis.counts}):
        mine = replace(target.symmetry, axes=tuple(axis for axis in axes if axis.tensor == tensor))
        undone = act({tensor: position.state[tensor]}, mine, back)
        before += float((target.reference[tensor] - undone[tensor]).square().sum())
        after += float((target.reference[tensor] - position.state[tensor]).square().sum())
    return gain_of(before, after)


def _gain_of_scales(target: Target, position: Position, name: str, still: State) -> float:
    """Return the share of the squared distance that the scales of a space's units take off, all orders in place."""
    names = {axis.tensor for axis in target.symmetry.of(name) if axis.counts}
    before, after = (
        sum(float((target.reference[n] - state[n]).square().sum()) for n in names) for state in (still, position.state)
    )
    return gain_of(before, after) if before > _ROUNDING * target.energy else 0.0


def inverse(move: Move) -> Move:
    """Return the move that undoes an order or a rotation (without scales and maps)."""
    if move.rotation is not None:
        return Move(rotation=move.rotation.T)
    return Move() if move.perm is None else Move(perm=move.perm.argsort())


def _settle_heads(
    name: str, move: Move, target: Target, bases: Bases, moved: State, still: State, *, kin: bool
) -> tuple[Move | None, float]:
    block = target.blocks[name]
    assert isinstance(block, HeadBlock)
    symmetry, space = target.symmetry, target.symmetry.spaces[name]
    rows, rest = head_rows(moved, symmetry, name), head_rows(still, symmetry, name)
    order = torch.arange(space.size) if move.perm is None else move.perm
    kept = order == torch.arange(space.size)
    before = after = 0.0
    changes: dict[str, Tensor] = {}
    stays = bool(kept.all())
    for part, own in block.own.parts.items():
        near, far = _distances(own, rows.parts[part]), _distances(own, rest.parts[part])
        leave = kept
        if space.maps[part] != "fixed":
            worth = _worth(own, near, far, kin=kin)
            leave = kept & ~worth
            changes[part] = _change(name, part, move, order, leave, bases, space.inner)
        stays = stays and bool(leave.all())
        before += float(far.sum())
        after += float(torch.where(leave, far, near).sum())
    if stays or after >= before:
        return None, 0.0
    return Move(move.perm, maps=changes), gain_of(before, after)


def _worth(own: Tensor, near: Tensor, far: Tensor, *, kin: bool) -> Bool[Tensor, " heads"]:
    turns, numbers = own.shape[-2] ** 2, own[0].numel()
    return worth_turning(far, near, turns=turns, numbers=numbers, energy=own.square().sum((-2, -1)), kin=kin)


def _distances(own: Tensor, other: Tensor) -> Float[Tensor, " heads"]:
    return (own - other).square().sum((-2, -1)).double()


def _change(
    name: str, part: str, move: Move, order: Tensor, leave: Tensor, bases: Bases, inner: int
) -> Float[Tensor, "heads inner inner"]:
    """Return raw to balanced, turned, and back in the reference's bases; exactly one where a head is left."""
    identity = torch.eye(inner, dtype=torch.float64).expand(len(order), -1, -1)
    turned = move.maps.get(part, identity)
    into, back = (_maps_of(element, name, part, identity) for element in (bases.candidate, bases.own))
    change = torch.linalg.solve(back, turned @ into[order])
    return torch.where(leave[:, None, None], identity, change)


def _maps_of(element: Element, name: str, part: str, otherwise: Tensor) -> Tensor:
    return element.moves[name].maps.get(part, otherwise) if name in element.moves else otherwise


def _rescaled(name: str, move: Move, bases: Bases) -> Float[Tensor, " units"] | None:
    """Return the scales that bring moved units to the reference's, or None where they are not free."""
    if name not in bases.own.moves:
        return None
    own, other = bases.own.moves[name].scale, bases.candidate.moves[name].scale
    if own is None or other is None:
        return None
    return (other if move.perm is None else other[move.perm]) / own


def _without_scales(element: Element) -> Element:
    return Element({name: replace(move, scale=None) for name, move in element.moves.items()})


def units_moved(symmetry: Symmetry, element: Element) -> dict[str, int]:
    """Return how many units, heads or channels changed places, by space."""
    moved = dict.fromkeys(symmetry.spaces, 0)
    for name, move in element.moves.items():
        if move.perm is not None:
            moved[name] = int((move.perm != torch.arange(len(move.perm))).long().sum())
    return moved


def angles_turned(symmetry: Symmetry, element: Element) -> dict[str, float]:
    """Return the mean angle of every space's rotation (streams, orthogonal part of head bases), in degrees."""
    angles = {}
    for name in symmetry.spaces:
        move = element.moves.get(name, Move())
        turned = [move.rotation] if move.rotation is not None else list(move.maps.values())
        mean = [float(torch.linalg.eigvals(_orthogonal(one)).angle().abs().mean()) for one in turned]
        angles[name] = sum(mean) / len(mean) * 180 / torch.pi if mean else 0.0
    return angles


def _orthogonal(change: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(change)
    return left @ right

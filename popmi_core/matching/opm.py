"""OPM for a whole network: put a site's model into the basis of the global model, the function unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from popmi_core.errors import UpdateError
from popmi_core.matching.descent import Position, Target, descend, embedding_start
from popmi_core.matching.elements import Element, apply
from popmi_core.matching.factors import Factors, HeadBasis, balance, factorise, rebase
from popmi_core.matching.settle import Candidate, gain_of, settle
from popmi_core.matching.symmetry import ViTSymmetry

State = Mapping[str, Tensor]
# Another start must beat the identity by this share of the squared distance: ties stay where they are.
_CLEARLY = 0.99


@dataclass(frozen=True)
class Matched:
    """One site's model in the reference's basis.

    ``gains``: per layer, the share of its squared distance to the reference that the layer's own move took off (all
    other moves in place), 0 to 1. ``identity``: which layers were left as they are. ``distances``: the squared
    distance after every sweep; it never rises. ``element``: the move itself. A model that needed none is the very
    tensors that came in.
    """

    state: dict[str, Tensor]
    gains: dict[str, float]
    identity: dict[str, bool]
    note: str = ""
    distances: tuple[float, ...] = ()
    element: Element = field(default_factory=Element)


class Matcher:
    """Match any number of candidates against one reference; its rows are prepared once (memory: one model)."""

    def __init__(self, reference: State, symmetry: ViTSymmetry | None, *, sweeps: int = 10) -> None:
        self.reference = reference
        self.symmetry = symmetry
        self.sweeps = sweeps
        self._prepared = _prepare(reference, symmetry)

    def match(self, candidate: State, *, site: str = "candidate") -> Matched:
        """Return the candidate in the reference's basis; ``site`` is whom an error names.

        Raises:
            UpdateError: If names or shapes differ from the reference, or a weight is NaN or infinite.
        """
        _check_like(candidate, self.reference, site)
        if self.symmetry is None:
            return Matched(dict(candidate), {}, {}, "architecture not known yet: plain averaging")
        if self._prepared is None:
            return Matched(dict(candidate), {}, {}, "the matched layers are frozen and not exchanged: nothing to match")
        own_bases, target = self._prepared
        _check_finite(candidate, f"site {site}")
        model = _candidate(candidate, self.symmetry)
        position, unturned = self._search(target, model.balanced)
        element, gains = settle(position, target, own_bases, model)
        if self.symmetry.stream == "orthogonal":
            gains["stream"] = gain_of(unturned, position.distances[-1])
        identity = _identity(element, self.symmetry)
        note = "; ".join(self.symmetry.notes)
        if all(identity.values()):
            return Matched(dict(candidate), gains, identity, note, position.distances, element)
        state = apply(candidate, self.symmetry, element, like=self.reference)
        return Matched(state, gains, identity, note, position.distances, element)

    def _search(self, target: Target, candidate: Factors) -> tuple[Position, float]:
        """Return the best position of all starts, and the squared distance without a rotation."""
        first = descend(target, candidate, start=None, sweeps=self.sweeps)
        if first.same_basis or target.symmetry.stream == "fixed":
            return first, first.distances[0]
        start = embedding_start(target, candidate)
        second = descend(target, candidate, start=start, sweeps=self.sweeps)
        better = second.distances[-1] < _CLEARLY * first.distances[-1]
        return (second if better else first), first.distances[0]


def match(candidate: State, reference: State, symmetry: ViTSymmetry | None, *, sweeps: int = 10) -> Matched:
    """Put ``candidate`` into the basis of ``reference`` (see ``Matcher`` for many candidates).

    Args:
        candidate: A site's model.
        reference: The model whose basis counts, the global one.
        symmetry: What ``describe_model`` said; None leaves the candidate as it is and says so in the note.
        sweeps: At most so many rounds over all blocks.

    Raises:
        UpdateError: If names or shapes differ, or a weight is NaN or infinite.
    """
    return Matcher(reference, symmetry, sweeps=sweeps).match(candidate)


def _prepare(reference: State, symmetry: ViTSymmetry | None) -> tuple[dict[int, HeadBasis], Target] | None:
    if symmetry is None or not symmetry.names() <= set(reference):
        return None
    _check_finite(reference, "the reference")
    model = _candidate(reference, symmetry)
    return dict(model.bases), Target(model.balanced, symmetry)


def _candidate(state: State, symmetry: ViTSymmetry) -> Candidate:
    raw = factorise(state, symmetry)
    bases = {i: balance(rows, symmetry.heads[i], raw.dim) for i, rows in raw.heads.items()}
    heads = {i: rebase(rows, bases[i], raw.dim) for i, rows in raw.heads.items()}
    return Candidate(raw, bases, replace(raw, heads=heads))


def _identity(element: Element, symmetry: ViTSymmetry) -> dict[str, bool]:
    left = {f"blocks.{index}.heads": index not in element.heads for index in symmetry.heads}
    left |= {f"blocks.{index}.mlp": index not in element.hidden for index in symmetry.hidden}
    return left | ({"stream": element.stream is None} if symmetry.stream == "orthogonal" else {})


def _check_like(candidate: State, reference: State, site: str) -> None:
    if set(candidate) != set(reference):
        name = min(set(candidate) ^ set(reference))
        side = "is missing" if name in reference else "is not part of the reference"
        raise UpdateError(f"site {site}: '{name}' {side}. Check that the site runs the same model configuration.")
    for name, tensor in reference.items():
        if candidate[name].shape != tensor.shape:
            raise UpdateError(
                f"site {site}: '{name}' has shape {tuple(candidate[name].shape)}, expected {tuple(tensor.shape)}. "
                "Check that the site runs the same model configuration."
            )


def _check_finite(state: State, who: str) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UpdateError(f"{who}: '{name}' holds NaN or infinity, expected finite weights. Quarantine the update.")

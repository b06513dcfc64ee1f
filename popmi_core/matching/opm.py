"""OPM for a whole network: put a site's model into the basis of the global model, the function unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from popmi_core.errors import UpdateError
from popmi_core.matching.canonical import canonicalise
from popmi_core.matching.descent import TOO_LARGE, Target, descend, embedding_start
from popmi_core.matching.elements import Element, act, apply
from popmi_core.matching.factors import gauge_of
from popmi_core.matching.forward import forward_start
from popmi_core.matching.settle import Bases, drifted_orders, settle
from popmi_core.matching.symmetry import State, Symmetry

# Another start must beat the identity by this share of the squared distance: ties stay where they are.
_CLEARLY = 0.99
# Above so many numbers the descent runs in float32: half the memory and twice the speed, and orders do not care.
_LARGE = 20_000_000
Judge = Callable[[Mapping[str, Tensor]], float]


@dataclass(frozen=True)
class Matched:
    """One site's model in the reference's basis.

    ``gains``: per space, the share of its squared distance to the reference that its own move took off (all other
    moves in place), 0 to 1. ``identity``: which spaces were left as they are. ``distances``: the squared distance
    after every sweep; it never rises. ``element``: the move itself. A model that needed none is the very mapping that
    came in; so is one that is as good as in the reference's basis (``Target.certified``), as most sites of a round.
    ``kin``: it shares its origin or its basis with the reference, so that no other start was looked at. ``certified``:
    one look at its weights said so, without an assignment or a rotation.
    """

    state: State
    gains: dict[str, float]
    identity: dict[str, bool]
    note: str = ""
    distances: tuple[float, ...] = ()
    element: Element = field(default_factory=Element)
    kin: bool = False
    certified: bool = False


class Matcher:
    """Match any number of candidates against one reference, which is prepared once (memory: about two models).

    Args:
        reference: The model whose basis counts, the global one.
        symmetry: What ``describe_model`` said; None leaves every candidate as it is and says so in the note. Where
            the reference is only a part of the model, what lies in that part whole is matched (``Symmetry.within``).
        sweeps: At most so many rounds over all spaces.
        restarts: Further descents in random order of the spaces, for nets without a rotated stream.
        generator: Gives those orders; None is seeded by 0.
    """

    def __init__(
        self,
        reference: State,
        symmetry: Symmetry | None,
        *,
        sweeps: int = 10,
        restarts: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        self.reference = reference
        self.symmetry = None if symmetry is None else symmetry.within(set(reference))
        self.sweeps, self.restarts = sweeps, restarts
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        self._prepared: tuple[Element, Target] | None = None
        self.dtype = torch.float64 if sum(t.numel() for t in reference.values()) <= _LARGE else torch.float32
        if self.symmetry is not None and (self.symmetry.spaces or self.symmetry is symmetry):
            _check_finite(reference, "the reference")
            with _naming("the reference", reference, self.symmetry, self.dtype):
                canonical = canonicalise(reference, self.symmetry, self.dtype)
                own = gauge_of(canonical, self.symmetry)
                self._prepared = own, Target(act(canonical, self.symmetry, own), self.symmetry, own)

    def match(
        self,
        candidate: State,
        *,
        site: str = "candidate",
        starts: Iterable[Element] = (),
        judge: Judge | None = None,
    ) -> Matched:
        """Return the candidate in the reference's basis.

        Args:
            candidate: A site's model.
            site: Whom an error names.
            starts: Further places to begin from, in canonical bases (from activations, or learned). Where the candidate
                shares its origin or its basis with the reference none is drawn from the iterable; the note says so.
            judge: Picks among the starts' ends instead of the distance: called with each moved model, lower is
                better (a loss on validation images; distance in weights is a poor selector).

        Raises:
            UpdateError: If names or shapes differ from the reference, a weight is NaN or infinite, or weights are so
                large that their scores overflow.
        """
        _check_like(candidate, self.reference, site)
        if self.symmetry is None:
            return Matched(candidate, {}, {}, "no description of this architecture: plain averaging")
        if self._prepared is None:
            return Matched(candidate, {}, {}, "the matched layers are frozen and not exchanged: nothing to match")
        _check_finite(candidate, f"site {site}")
        with _naming(f"site {site}", candidate, self.symmetry, self.dtype):
            return self._placed(candidate, starts, judge)

    def _placed(self, candidate: State, starts: Iterable[Element], judge: Judge | None) -> Matched:
        assert self.symmetry is not None
        assert self._prepared is not None
        own, target = self._prepared
        canonical = canonicalise(candidate, self.symmetry, self.dtype)
        offered = not isinstance(starts, Sized) or len(starts) > 0
        if (left := self._certified(candidate, canonical)) is not None:
            return replace(left, note=_noted(left.note, offered))
        outer = (_outer(start, self.symmetry) for start in starts)
        ends = list(self._ends(target, canonical, Bases(own, gauge_of(canonical, self.symmetry)), outer, judge))
        del canonical
        best = _best(ends, None if judge is None else lambda e: judge(self._moved(candidate, e)))
        matched = self._matched(candidate, best)
        return replace(matched, note=_noted(matched.note, offered), kin=True) if ends[0].kin else matched

    def _certified(self, candidate: State, canonical: State) -> Matched | None:
        """Return a candidate that is as good as in the reference's basis as it is; None for others."""
        assert self.symmetry is not None
        assert self._prepared is not None
        target = self._prepared[1]
        if not target.certified(canonical):
            return None
        names, note = list(self.symmetry.spaces), "; ".join(self.symmetry.notes)
        distances = (target.gauged_distance(canonical),)
        stays = dict.fromkeys(names, True)
        gains = dict.fromkeys(names, 0.0)
        return Matched(candidate, gains, stays, note, distances, kin=True, certified=True)

    def _ends(
        self, target: Target, canonical: State, bases: Bases, starts: Iterable[Element], judge: Judge | None
    ) -> Iterator[_End]:
        """Yield where every start ends; one end only where the basis is the same already.

        Under a judge every start competes as it is, too: the descent by weights can undo a match that activations
        call for, and come closer in weights only. Of every descent only its moves are kept, not its model.
        """
        symmetry = target.symmetry

        def end(
            start: Element | None = None, generator: torch.Generator | None = None, held: Iterable[str] = ()
        ) -> _End:
            found = descend(
                target,
                act(canonical, symmetry, bases.candidate),
                start=start,
                sweeps=self.sweeps,
                generator=generator,
                held=set(held),
            )
            kin = found.same_basis or found.kin
            drifted = drifted_orders(found, target) if kin and start is None else set()
            return _End(found.distances, *settle(found, target, bases, canonical), kin, drifted)

        first, left = end(), set[str]()
        while first.drifted:
            left |= first.drifted
            first = end(held=left)
        yield first
        if first.kin:
            return
        own_start = embedding_start if target.streams else forward_start
        yield end(own_start(target, act(canonical, symmetry, bases.candidate)))
        for start in starts:
            yield end(start)
            if judge is not None:
                # Only the maps inside heads, which a start leaves open, are still to be found.
                yield end(start, held=[n for n in start.moves if symmetry.spaces[n].kind != "heads"])
        for _ in range(self.restarts):
            yield end(generator=self.generator)

    def _moved(self, candidate: State, element: Element) -> dict[str, Tensor]:
        assert self.symmetry is not None
        return apply(candidate, self.symmetry, element, like=self.reference, dtype=self.dtype)

    def _matched(self, candidate: State, end: _End) -> Matched:
        assert self.symmetry is not None
        identity = {name: name not in end.element.moves for name in self.symmetry.spaces}
        note = "; ".join(self.symmetry.notes)
        state = candidate if all(identity.values()) else self._moved(candidate, end.element)
        return Matched(state, end.gains, identity, note, end.distances, end.element)


@dataclass(frozen=True)
class _End:
    """Where one descent ended: its distances, the settled move, every space's gain, and ``kin`` as in ``Matched``.

    ``drifted``: between kin, the spaces whose order only follows drift: they are to be held.
    """

    distances: tuple[float, ...]
    element: Element
    gains: dict[str, float]
    kin: bool
    drifted: set[str]


def match(candidate: State, reference: State, symmetry: Symmetry | None, *, sweeps: int = 10) -> Matched:
    """Put ``candidate`` into the basis of ``reference`` (see ``Matcher`` for many candidates).

    Raises:
        UpdateError: If names or shapes differ, or a weight is NaN or infinite.
    """
    return Matcher(reference, symmetry, sweeps=sweeps).match(candidate)


@contextmanager
def _naming(who: str, state: State, symmetry: Symmetry, dtype: torch.dtype) -> Iterator[None]:
    """Have what fails inside say whose model it is, and which tensor overflows where folding norms in is enough."""
    try:
        yield
    except UpdateError as error:
        raise UpdateError(f"{who}: {error}") from error
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        _check_finite(canonicalise(state, symmetry, dtype), f"{who}, with norms folded in")
        raise UpdateError(f"{who}: its weights are finite but overflow ({error}). {TOO_LARGE}") from error


def _outer(start: Element, symmetry: Symmetry) -> Element:
    """Return what a start moves of these spaces, without maps inside heads and scales: the descent finds those."""
    moves = {name: move for name, move in start.moves.items() if name in symmetry.spaces}
    return Element({name: replace(move, maps={}, scale=None) for name, move in moves.items()})


def _noted(note: str, offered: bool) -> str:
    """Return the note of a model that stayed near its origin, with what was therefore not done."""
    said = "shares its origin with the reference: matched by weights alone" if offered else ""
    return "; ".join(filter(None, (note, said)))


def _best(ends: list[_End], judge: Callable[[Element], float] | None) -> _End:
    if judge is not None and len(ends) > 1:
        return min(ends, key=lambda end: judge(end.element))
    best = ends[0]
    for end in ends[1:]:
        # The identity is the first; others have to beat what is best so far, and that one clearly.
        if end.distances[-1] < (_CLEARLY if best is ends[0] else 1.0) * best.distances[-1]:
            best = end
    return best


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

"""Rotations by quarter turns, with or without reflections: the symmetries a square grid has exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from popmi_core.errors import ModelError

_QUARTERS = 4
_STEPS = {"C1": 4, "C2": 2, "C4": 1, "D1": 4, "D2": 2, "D4": 1}


class Element(NamedTuple):
    """Mirror left-right if ``flip``, then turn ``turns`` quarters counter-clockwise."""

    turns: int
    flip: bool

    def compose(self, first: Element) -> Element:
        """Return the element that acts like ``first`` and then ``self``."""
        # A mirror turns every rotation that follows it into its inverse: s r = r^-1 s.
        turns = self.turns + (-first.turns if self.flip else first.turns)
        return Element(turns % _QUARTERS, self.flip != first.flip)

    def inverse(self) -> Element:
        """Return the element that undoes ``self``; a reflection undoes itself."""
        return self if self.flip else Element(-self.turns % _QUARTERS, False)


@dataclass(frozen=True)
class PointGroup:
    """A group by name; ``elements`` starts with the identity and its order is part of the contract."""

    name: str
    elements: tuple[Element, ...]

    def __len__(self) -> int:
        return len(self.elements)

    @property
    def generators(self) -> tuple[Element, ...]:
        """The smallest turn and, in a dihedral group, the mirror: what holds for them holds for all."""
        turn = Element(_STEPS[self.name] % _QUARTERS, False)
        return tuple(element for element in (turn, Element(0, True)) if element in self.elements[1:])

    def index(self, element: Element) -> int:
        """Return the position of ``element`` in ``elements``."""
        return self.elements.index(element)


def point_group(name: str) -> PointGroup:
    """Return C1, C2, C4, D1, D2 or D4.

    Raises:
        ModelError: If the group has angles that do not map a square grid onto itself (such as C8).
    """
    if name not in _STEPS:
        raise ModelError(
            f"group {name!r} is not exact on a square grid, expected one of {', '.join(_STEPS)}. "
            "Use C4 or D4 and augmentation for the angles between."
        )
    flips = (False, True) if name.startswith("D") else (False,)
    return PointGroup(
        name, tuple(Element(turns, flip) for flip in flips for turns in range(0, _QUARTERS, _STEPS[name]))
    )

"""Which relative position a group attention layer sees: the one thing GSA-Nets and GE-ViT differ in.

The layer lets query (x, g) look at key (y, m) and writes to the group element v. Turning the image by u moves all of
them: g -> ug, m -> um, v -> uv, x -> ux. So the layer is equivariant if and only if what it encodes does not change
then: in space v^-1 (y - x), on the group any function of v^-1 g and v^-1 m. The published rules on the group:

- GSA-Nets (Romero and Cordonnier 2021, arXiv:2010.00977): v acts on g^-1 m. But g^-1 m stays the same when both are
  turned; acting on it once more leaves v g^-1 m, which does not. Not equivariant, for any group but C1.
- GE-ViT (Xu et al. 2023, arXiv:2306.06722): on rotations 2g - m - v, which is v^-1 g m^-1 g: equivariant. Its released
  table for rotations and mirrors rolls each half of the group the other way and is no function of v^-1 g and v^-1 m.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popmi_core.errors import ModelError
from popmi_core.groups import Element, PointGroup, act

Family = Literal["gsa", "ge-vit"]
Rule = Literal["exact", "published"]

_QUARTERS = 4


def window_positions(group: PointGroup, window: int) -> Float[Tensor, "order cells 2"]:
    """Return (row, column) of v^-1 p in [-1, 1] for every v in the group and every cell p of the window, row-major."""
    line = torch.linspace(-1, 1, window)
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    # act(v, field)(p) = field(v^-1 p): turning the map of rows gives the row of the cell turned back.
    turned = [torch.stack([act(v, rows), act(v, columns)], dim=-1).flatten(0, 1) for v in group.elements]
    return torch.stack(turned)


def pair_index(group: PointGroup, family: Family, rule: Rule) -> Int[Tensor, "order order order"]:
    """Return the row of the group embedding for (v, g, m): element written to, of the query, of the key.

    Raises:
        ModelError: If family and rule are not known.
    """
    if family not in ("gsa", "ge-vit") or rule not in ("exact", "published"):
        raise ModelError(
            f"position rule is {rule!r} of {family!r}, expected 'exact' or 'published' of 'gsa' or 'ge-vit'."
        )
    if (family, rule) == ("ge-vit", "published") and any(element.flip for element in group.elements):
        return _released_mirror_table(group)
    elements = group.elements
    return torch.tensor(
        [[[group.index(_relative(v, g, m, family, rule)) for m in elements] for g in elements] for v in elements]
    )


def _relative(v: Element, g: Element, m: Element, family: Family, rule: Rule) -> Element:
    if family == "gsa":
        between = g.inverse().compose(m)
        return between if rule == "exact" else v.compose(between)
    return v.inverse().compose(g).compose(m.inverse()).compose(g)


def _released_mirror_table(group: PointGroup) -> Int[Tensor, "order order order"]:
    """Return GE-ViT's released table for rotations with mirrors, in our numbering (it has the same one)."""
    turns = torch.tensor([element.turns for element in group.elements])
    flips = torch.tensor([int(element.flip) for element in group.elements])
    sign = 1 - 2 * flips
    v, g, m = (axis.view(shape) for axis, shape in zip([torch.arange(len(group))] * 3, _AXES, strict=True))
    turned = turns[m] - sign[m] * turns[g] - sign[m] * sign[g] * turns[v]
    flipped = (flips[m] + flips[g] + flips[v]) % 2
    rows = zip(turned.flatten().tolist(), flipped.expand_as(turned).flatten().tolist(), strict=True)
    found = [group.index(Element(turn % _QUARTERS, bool(flip))) for turn, flip in rows]
    return torch.tensor(found).view(turned.shape)


_AXES = ((-1, 1, 1), (1, -1, 1), (1, 1, -1))

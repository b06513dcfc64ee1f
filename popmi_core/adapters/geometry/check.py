"""Is a backbone exact at this image size, merged after this block? If not: why, by how much, and at what size?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from popmi_core.adapters.geometry.measure import TOLERANCE, blobs, first_break, tail_error
from popmi_core.adapters.geometry.rules import Reason, breaks
from popmi_core.adapters.geometry.trace import MISFIT, Trace, stages_of, trace
from popmi_core.adapters.geometry.twin import tied_twin
from popmi_core.adapters.trunk import foreign, unmergeable
from popmi_core.groups import PointGroup, point_group

Verdict = Literal["exact", "approximate", "refused"]
REFUSED_FROM = 0.5
"""An error of half the spread between images and more is no approximation: the answer is another one."""
_SMALLEST, _FAR = 8, 32


@dataclass(frozen=True)
class Geometry:
    """The verdict for one image size and merge block.

    Attributes:
        verdict: ``exact``; ``approximate``: the answer moves by less than half its spread; ``refused``: by more, or
            the model does not run, gives no square map to merge, or PREA cannot be put around it there.
        reasons: What is in the way, module by module; empty where it is exact.
        nearest_exact: The nearest image size that is exact for this merge block; None if none was found near by.
        image_size: Pixels per side.
        merge_block: k: copies run through the first k blocks or stages.
        error: max |f(gx) - f(x)| over the spread of logits of the tied model, measured; None where it cannot run or
            was not measured.
    """

    verdict: Verdict
    reasons: tuple[Reason, ...]
    nearest_exact: int | None
    image_size: int
    merge_block: int
    error: float | None = None


def check_geometry(
    backbone: nn.Module,
    image_size: int,
    *,
    group: str | PointGroup,
    merge_block: int,
    measure: bool = True,
    search: bool = True,
    make: Callable[[int], nn.Module] | None = None,
) -> Geometry:
    """Return whether the part after the merge commutes with the group at this image size.

    Args:
        backbone: A timm model; it is not changed.
        image_size: Pixels per side.
        group: C4, D4 or a subgroup.
        merge_block: k, from 0 to the number of blocks (ViT) or stages (other families).
        measure: Run a tied copy as well: its error is the figure, and shows layers that the rules do not know.
            Without it an uneven geometry is always called approximate.
        search: Look for the nearest exact size where this one is not.
        make: Builds the backbone for another image size; by default timm's own ``set_input_size`` is used.

    Raises:
        ModelError: If the group is not exact on a grid, or the backbone has no blocks or stages.
    """
    return check_all(
        backbone, image_size, group=group, merge_blocks=(merge_block,), measure=measure, search=search, make=make
    )[0]


def check_all(
    backbone: nn.Module,
    image_size: int,
    *,
    group: str | PointGroup,
    merge_blocks: Sequence[int] | None = None,
    measure: bool = True,
    search: bool = True,
    make: Callable[[int], nn.Module] | None = None,
) -> tuple[Geometry, ...]:
    """Return ``check_geometry`` for several merge blocks (None: all of them) at the price of one trace a size."""
    symmetry = point_group(group) if isinstance(group, str) else group
    count = len(stages_of(backbone))
    blocks = range(count + 1) if merge_blocks is None else merge_blocks
    seen = trace(backbone, image_size)
    found = [judge(seen, image_size, symmetry, block, count=count) for block in blocks]
    found = [_attachable(backbone, geometry) for geometry in found]
    if measure and not seen.problem:
        twin = tied_twin(backbone, image_size, symmetry)
        found = [_measured(twin, geometry, symmetry) for geometry in found]
    return _with_nearest(found, backbone, symmetry, make) if search else tuple(found)


def judge(seen: Trace, image_size: int, group: PointGroup, merge_block: int, *, count: int) -> Geometry:
    """Return the verdict of the rules alone on what was traced."""

    def refused(what: str, module: str = "") -> Geometry:
        return Geometry("refused", (Reason(module, what),), None, image_size, merge_block)

    if not 0 <= merge_block <= count:
        return refused(f"merge block {merge_block} does not exist, expected 0 to {count}")
    if seen.problem:
        return refused(seen.problem)
    if len(seen.ends) != count:
        return refused(f"{len(seen.ends)} of its {count} blocks ran once each: where to merge is not clear")
    if merge_block and seen.sides[merge_block - 1] is None:
        return refused(f"block {merge_block} gives no square map: copies cannot be turned back")
    after = seen.steps[seen.ends[merge_block - 1] if merge_block else 0 :]
    reasons = breaks(after, group)
    return Geometry("approximate" if reasons else "exact", reasons, None, image_size, merge_block)


def _attachable(backbone: nn.Module, geometry: Geometry) -> Geometry:
    """Refuse what PREA cannot be put around at this merge block, whatever its layers do with places."""
    if not hasattr(backbone, "forward_features"):
        return geometry
    problem = foreign(backbone) or unmergeable(backbone, geometry.merge_block)
    if problem is None:
        return geometry
    return replace(geometry, verdict="refused", reasons=(Reason("", problem, lasting=True), *geometry.reasons))


def _measured(twin: Any, geometry: Geometry, group: PointGroup) -> Geometry:
    """Put the measured error into the verdict; one that no rule explains is traced to the module it comes from."""
    if geometry.verdict == "refused":
        return geometry
    images = blobs(twin, geometry.image_size)
    error = tail_error(twin, images, group, geometry.merge_block, whole=bool(geometry.reasons))
    reasons = geometry.reasons
    if not reasons and not error < TOLERANCE:
        found = first_break(twin, images, group, geometry.merge_block)
        what = "some layer keeps places in a way that is not known here"
        reasons = (found or Reason("", what, lasting=True),)
        error = tail_error(twin, images, group, geometry.merge_block)
    if not reasons:
        return replace(geometry, error=error)
    verdict: Verdict = "approximate" if error < REFUSED_FROM else "refused"
    return replace(geometry, verdict=verdict, reasons=reasons, error=error)


def _with_nearest(
    found: Sequence[Geometry], backbone: nn.Module, group: PointGroup, make: Callable[[int], nn.Module] | None
) -> tuple[Geometry, ...]:
    """Look for the nearest size by the rules alone; one size serves all merge blocks that still lack one."""
    count = len(stages_of(backbone))
    nearest = {g.merge_block: g.image_size for g in found if g.verdict == "exact"}
    # What no rule explains does not go away with another size; what cannot be merged neither.
    open_blocks = {g.merge_block for g in found if g.verdict != "exact" and 0 <= g.merge_block <= count and _sized(g)}
    for size in _sizes_around(found[0].image_size, _tile(backbone)) if open_blocks else ():
        try:
            seen = trace(backbone if make is None else make(size), size, enough=_hopeless(group, max(open_blocks)))
        except MISFIT:
            continue
        for block in sorted(open_blocks):
            if judge(seen, size, group, block, count=count).verdict == "exact":
                nearest[block] = size
                open_blocks.discard(block)
        if not open_blocks:
            break
    return tuple(replace(geometry, nearest_exact=nearest.get(geometry.merge_block)) for geometry in found)


def _hopeless(group: PointGroup, last: int) -> Callable[[Trace], bool]:
    """Return what stops a trace when even the latest merge has an uneven step behind it."""
    return lambda seen: len(seen.ends) >= last and bool(breaks(seen.steps[-1:], group))


def _sized(geometry: Geometry) -> bool:
    return not any(reason.lasting for reason in geometry.reasons)


def _tile(backbone: Any) -> int:
    """Return of what image sizes have to be a multiple: the patch where patches tile, else one pixel."""
    patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", 1)
    return int(patch[0] if isinstance(patch, tuple | list) else patch)


def _sizes_around(image_size: int, tile: int) -> Iterator[int]:
    """Yield multiples of ``tile`` from near to far, a quarter of the size away at most; of two, the larger first."""
    for step in range(1, max(image_size // 4, _FAR) + 1):
        for size in (image_size + step, image_size - step):
            if size % tile == 0 and size >= _SMALLEST:
                yield size

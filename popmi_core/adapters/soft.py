"""Soft equivariance: PREA whose last blocks may see orientation again, and start without doing so.

Where "up" carries meaning an exact model cannot learn it. A softened model begins exactly equivariant and leaves the
group only as far as the data pull it: what is added starts at zero, and weight decay pulls it back there.

- Transformers: a learned table of places, not tied over the group, is added before the last blocks or stages.
- Convolutional networks merged before their last stages: the kernels there get a part that is not tied.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from popmi_core.adapters.cuts import cut_of
from popmi_core.adapters.merge import KERNEL, TABLE
from popmi_core.adapters.prea import Prea
from popmi_core.adapters.tied import TiedConv2d
from popmi_core.errors import ModelError
from popmi_core.groups import PointGroup


class FreedConv2d(TiedConv2d):
    """A tied convolution plus a kernel that is not tied, ``free_kernel`` [out, in / groups, side, side], zero at first.

    ``kernel() = orbit values spread over the pixels + free_kernel``.
    """

    def __init__(self, tied: TiedConv2d, group: PointGroup) -> None:
        super().__init__(tied.dense(), group)
        for name, stored in tied.named_parameters():
            self.get_parameter(name).requires_grad_(stored.requires_grad)
        self.free_kernel = nn.Parameter(torch.zeros_like(super().kernel()))
        self.train(tied.training)

    def kernel(self) -> Float[Tensor, "out in side side"]:
        """Return the kernel as a dense convolution would store it."""
        return super().kernel() + self.free_kernel


def soften(model: Prea, *, free_blocks: int, image_size: int) -> Prea:
    """Return a copy whose last ``free_blocks`` blocks (of a ViT; stages of others) may see orientation.

    It computes what ``model`` does until it is trained. Where only adapters are trained, what was added is, too.

    Args:
        model: PREA around a known backbone, merged before these blocks.
        free_blocks: How many of the last, >= 1.
        image_size: Pixels per side; a table of places has the size of the map there.

    Raises:
        ModelError: If there are not so many blocks after the merge, or the backbone's blocks are not known.
    """
    if model.fields == "regular":
        raise ModelError("regular fields see orientation already: there is no block to free. Leave free_blocks out.")
    model = copy.deepcopy(model)
    cut = cut_of(model.backbone)
    stages = [] if cut is None else [stage for _, stage in cut.stages(model.backbone)]
    name, after = type(model.backbone).__name__, max(0, len(stages) - model.merge_block)
    if not 1 <= free_blocks <= after:
        raise ModelError(
            f"{name} has {after} known blocks after the merge at block {model.merge_block}, free_blocks is "
            f"{free_blocks}. Choose 1 to {after}, or merge earlier."
            if after
            else f"{name} has no known block after the merge at block {model.merge_block} that could be freed. Merge "
            "earlier (merge_block), or take a group that the data have."
        )
    last = stages[-free_blocks:]
    kernels = [spot for stage in last for spot in _tied_in(stage)]
    if kernels:
        for owner, child, conv in kernels:
            setattr(owner, child, FreedConv2d(conv, model.group))
    else:
        _add_table(model, last[0], image_size)
    return model


def free_blocks_in(names: Iterable[str], backbone: nn.Module) -> int:
    """Return how many of the last blocks a softened model's tensor names say are free; 0 if it is not softened."""
    cut = cut_of(backbone)
    paths = [] if cut is None else [path for path, _ in cut.stages(backbone)]
    freed = [name for name in names if name.rpartition(".")[2] in (TABLE, KERNEL)]
    found = [index for index, path in enumerate(paths) if any(f"{path}." in name for name in freed)]
    return len(paths) - min(found) if found else 0


def softness(state: Mapping[str, Tensor]) -> dict[str, float]:
    """Return how far each freed place has left the group: the largest absolute value of what was added, by name."""
    return {
        name: float(tensor.detach().abs().max())
        for name, tensor in state.items()
        if name.rpartition(".")[2] in (TABLE, KERNEL)
    }


def _tied_in(stage: nn.Module) -> Iterator[tuple[nn.Module, str, TiedConv2d]]:
    spots = [
        (owner, name, child)
        for owner in stage.modules()
        for name, child in owner.named_children()
        if isinstance(child, TiedConv2d)
    ]
    yield from spots


def _add_table(model: Prea, stage: nn.Module, image_size: int) -> None:
    seen: list[Tensor] = []
    handle = stage.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    like = next(model.parameters())
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, _channels(model.backbone), image_size, image_size).to(like))
    finally:
        handle.remove()
        model.train(training)
    stage.register_parameter(TABLE, nn.Parameter(torch.zeros_like(seen[0])))
    stage.register_forward_pre_hook(_see_places)


def _see_places(stage: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # A function of the module, not a closure over it: a deep copy of the model then reads its own table.
    return (args[0] + stage.free_positions, *args[1:])


def _channels(backbone: nn.Module) -> int:
    first = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    return first.in_channels

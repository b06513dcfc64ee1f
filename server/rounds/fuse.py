"""Make one model of the matched ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from popmi_core.config import FuseConfig
from popmi_core.fusion import Fused, Update, fuse
from popmi_core.matching import ViTSymmetry


def fuse_updates(
    updates: Sequence[Update],
    *,
    reference: Mapping[str, Tensor],
    symmetry: ViTSymmetry | None,
    config: FuseConfig,
) -> Fused:
    """Return the fused model, the sites' weights in it, and which rule each part was averaged by.

    Raises:
        UpdateError: If the rule cannot work with this many updates (Krum).
    """
    return fuse(config.rule, updates, reference=reference, symmetry=symmetry, config=config)


def move_control(
    control: Mapping[str, Tensor], changes: Sequence[Mapping[str, Tensor]], *, num_sites: int
) -> dict[str, Tensor]:
    """Return the server's control variate after a round, ``c + (1/N) * sum of the sites' changes``.

    Karimireddy et al. 2020, SCAFFOLD, arXiv:1910.06378, algorithm 1, line 17.
    """
    moved = {name: tensor.clone() for name, tensor in control.items()}
    for change in changes:
        for name, tensor in change.items():
            step = tensor.double() / num_sites
            moved[name] = (moved[name].double() + step if name in moved else step).to(tensor.dtype)
    return moved

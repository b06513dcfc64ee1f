"""PREA, the plug-and-play rotation-equivariant adapter: orbit-merge at block k of a timm backbone.

Copies of the image, one per group element, run through the backbone's first k blocks or stages; each is turned
back and they are averaged; the rest of the network runs once. After that a turn of the image only moves places, and
whatever lets places in afterwards (kernels, window tables, patch merging) is tied over the group, so training,
averaging over sites and noise cannot break the symmetry. See docs/prea.md.

With regular fields there are no copies: the channels themselves turn with the image (see ``regular``).
"""

from __future__ import annotations

import copy
from typing import Any, Literal, Self, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from popmi_core.adapters import regular, symmetric, trunk
from popmi_core.adapters.cuts import cut_of
from popmi_core.adapters.exactness import require_exact
from popmi_core.adapters.geometry import check_geometry
from popmi_core.adapters.lora import add_lora
from popmi_core.adapters.merge import OrbitMerge
from popmi_core.adapters.tying import tie, untie
from popmi_core.adapters.wishes import adapters_of
from popmi_core.errors import ModelError
from popmi_core.groups import PointGroup, point_group

Fields = Literal["trivial", "regular"]
Weights = Literal["mean", "lambda"]
Trained = Literal["all", "adapter"]


class Prea(nn.Module):
    """A backbone (``backbone.``, timm's own names) with the adapter (``prea.``) at ``merge_block``."""

    orbits: Tensor | None

    def __init__(
        self,
        backbone: nn.Module,
        group: PointGroup,
        merge_block: int,
        adapter: OrbitMerge,
        *,
        frozen: bool,
        fields: Fields = "trivial",
    ) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.prea = adapter
        self.group = group
        self.merge_block = merge_block
        self.frozen = frozen
        self.fields = fields
        self.pretrained_cfg = getattr(backbone, "pretrained_cfg", {})
        # Folded: the merge is already in the weights, and only one copy runs.
        self.folded = merge_block == 0
        drops: float = getattr(getattr(backbone, "patch_drop", None), "prob", 0.0)
        if fields == "trivial" and drops:
            raise ModelError(
                f"{type(backbone).__name__} drops patches in training, others in every copy: what is left cannot be "
                "merged. Make it with patch_drop_rate=0, or take regular fields."
            )
        made = regular.make_regular(backbone, group) if fields == "regular" else tie(backbone, group, merge_block)
        self.register_buffer("orbits", made, persistent=False)

    def forward(self, images: Float[Tensor, "n c side side"]) -> Float[Tensor, "n classes"]:
        """Return the logits; they do not change when the images are turned by the group.

        Raises:
            ModelError: If the images are not square.
        """
        if images.shape[-2] != images.shape[-1]:
            raise ModelError(
                f"images are {images.shape[-2]}x{images.shape[-1]} pixels, expected square ones: quarter turns "
                "change the shape. Crop or pad them."
            )
        if self.fields == "regular":
            # Nothing is merged or adapted.
            return trunk.back(self.backbone, self._before(images), 0)
        grid, prefix = trunk.to_grid(self.backbone, self._before(images))
        if not self.folded:
            grid, prefix = self.prea.merge(grid, prefix)
        prefix = None if prefix is None else self.prea.refine(prefix)
        features = trunk.from_grid(self.backbone, self.prea.refine(grid), prefix)
        return trunk.back(self.backbone, features, self.merge_block, self._between)

    def _before(self, images: Tensor) -> Tensor:
        if not self.folded:
            return trunk.front(self.backbone, self.prea.rotate(images), self.merge_block)
        if self.fields == "regular" and hasattr(self.backbone, "pos_embed"):
            return regular.embed(self.backbone, images, len(self.group), self.orbits)
        if self.orbits is None:
            return trunk.front(self.backbone, images, 0)
        return symmetric.embed(self.backbone, images, self.orbits)

    def _between(self, block: int, features: Tensor) -> Tensor:
        if str(block) not in self.prea.lift:
            return features
        grid, prefix = trunk.to_grid(self.backbone, features)
        return trunk.from_grid(self.backbone, self.prea.lift[str(block)](grid), prefix)

    def get_classifier(self) -> nn.Module:
        """Return the head, as timm's models do."""
        head: nn.Module = self.backbone.get_classifier()
        return head

    def train(self, mode: bool = True) -> Self:
        """Switch training on or off; a frozen backbone stays in evaluation mode, so no statistic moves."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self


def attach(
    backbone: nn.Module,
    *,
    group: str,
    merge_block: int | None = None,
    fields: Fields = "trivial",
    weights: Weights = "mean",
    adapters: str | None = None,
    rank: int = 8,
    train: Trained = "all",
    seed: int = 0,
    image_size: int | None = None,
    allow_approximate: bool = False,
) -> Prea:
    """Return a copy of ``backbone`` with PREA; with mean weights it computes the orbit-merge of the original.

    After an early merge the spatial weights behind it are replaced by their orbit means, so there the function changes.

    Args:
        backbone: A timm model that takes square images and gives logits.
        group: C4 (quarter turns) or D4 (quarter turns and mirror images); subgroups work too.
        merge_block: k, in a ViT's blocks or another backbone's stages; None is about a quarter of a ViT's blocks, and
            the last map of other families; with regular fields it is 0.
        fields: What channels are: ``trivial``: a turn only moves places; ``regular``: a field of channels, one for each
            element, turns with the image. Nothing is merged, orientation is not lost, and linear layers keep 1 / |G| of
            their weights; for training from scratch.
        weights: ``mean``, or ``lambda``: shares of the average are learned, per image.
        adapters: What is trained beside the backbone after the merge: ``bottleneck`` (a step per token),
            ``lifted-conv`` (a group convolution of tokens before every block or stage), ``lora`` (low-rank adapters on
            attention), several joined by ``+``, or ``none``; None is ``bottleneck``, and ``none`` with regular fields.
        rank: Width of all of these.
        train: ``all``, or ``adapter``: only adapters and the head are trained.
        seed: Fixes what does not start at zero.
        image_size: Pixels per side; where it is given, it is checked that the group is exact at this size.
        allow_approximate: Take a size at which it is only nearly exact.

    Raises:
        ModelError: If the group is not exact on a grid, the backbone cannot be merged at ``merge_block`` or is not
            exact at ``image_size``, there is no such adapter or no place for it, or widths are no whole regular fields.
    """
    _require_known(backbone, fields=(fields, Fields), weights=(weights, Weights), train=(train, Trained))
    symmetry, wanted = point_group(group), adapters_of(adapters, fields)
    if fields == "regular":
        _require_regular(merge_block, weights, wanted)
    block = 0 if fields == "regular" else trunk.choose_block(backbone, merge_block)
    if block == 0 and weights == "lambda":
        raise ModelError("merge_block 0 folds the merge into the weights: there is nothing to weight. Use 'mean'.")
    if image_size is not None:
        require_geometry(backbone, image_size, symmetry, block, allow_approximate=allow_approximate, fields=fields)
    adapter = OrbitMerge(
        symmetry,
        trunk.width(backbone, block),
        rank,
        weighted=weights == "lambda",
        generator=torch.Generator().manual_seed(seed),
        bottleneck="bottleneck" in wanted,
        lifted=_places(backbone, block) if "lifted-conv" in wanted else None,
    ).to(next(backbone.parameters()))
    model = Prea(copy.deepcopy(backbone), symmetry, block, adapter, frozen=train == "adapter", fields=fields)
    if model.frozen:
        _freeze(model)
    _require_head(model, None if allow_approximate else image_size)
    model.train(backbone.training)
    return add_low_rank(model, rank=rank, train=train, seed=seed) if "lora" in wanted else model


def _require_known(backbone: nn.Module, **asked: tuple[str, Any]) -> None:
    trunk.require_own(backbone)
    for what, (value, kind) in asked.items():
        if value not in get_args(kind):
            known = ", ".join(get_args(kind))
            raise ModelError(f"{what} {value!r} is not known, expected one of {known}. Correct it.")


def _require_head(model: Prea, image_size: int | None) -> None:
    # Where no rule knows what the backbone does with places, only running it tells.
    if image_size is not None and cut_of(model.backbone) is None:
        require_exact(model.eval(), image_size, model.group, name=type(model.backbone).__name__)


def _require_regular(merge_block: int | None, weights: str, adapters: tuple[str, ...]) -> None:
    asked = [
        *([f"merge_block {merge_block}"] if merge_block else []),
        *([f"weights {weights!r}"] if weights != "mean" else []),
        *([f"adapters {'+'.join(adapters)!r}"] if adapters else []),
    ]
    if asked:
        raise ModelError(
            f"fields 'regular' with {', '.join(asked)}: nothing is merged and no adapter is known between regular "
            "fields. Leave these out, or take trivial fields."
        )


def add_low_rank(model: Prea, *, rank: int, train: Trained = "all", seed: int = 0) -> Prea:
    """Return a copy with low-rank adapters on the attention behind the merge (``adapters = "lora"``).

    There every token is treated alike, so they keep the symmetry as any weights do; and they fold away.

    Raises:
        ModelError: If there is no attention behind the merge, or the rank does not fit.
    """
    names = trunk.attention_layers(model.backbone, model.merge_block)
    if not names:
        raise ModelError(
            f"{type(model.backbone).__name__} has no attention after merge_block {model.merge_block} for low-rank "
            "adapters. Take 'bottleneck' or 'lifted-conv', or merge earlier."
        )
    return cast(Prea, add_lora(model, [f"backbone.{name}" for name in names], rank=rank, train=train, seed=seed))


def require_geometry(
    backbone: nn.Module,
    image_size: int,
    group: PointGroup,
    block: int,
    *,
    allow_approximate: bool,
    fields: Fields = "trivial",
) -> None:
    """Refuse an image size at which the group is not exact, before anything is built.

    Backbones that are not known are merged on their last map only, where every size is right (``attach`` runs them to
    see that their heads do not know places).

    Raises:
        ModelError: If it is not; the reasons and the nearest exact size are named.
    """
    if cut_of(backbone) is None:
        return
    found = check_geometry(backbone, image_size, group=group, merge_block=block)
    if found.verdict == "exact" or (found.verdict == "approximate" and allow_approximate):
        return
    nearest = "" if found.nearest_exact is None else f" {found.nearest_exact} is the nearest exact image size."
    why = "; ".join(str(reason) for reason in found.reasons[:3])
    last = trunk.depth(backbone)
    merge = "merge later" if fields == "trivial" else "take trivial fields, merged later"
    later = "" if block == last else f", or {merge} (merge_block {last} works at every size)"
    raise ModelError(
        f"{type(backbone).__name__} at {image_size}x{image_size} pixels, merged after block {block}, is not exact "
        f"under {group.name} ({found.verdict}): {why}.{nearest} Change image_size{later}."
    )


def _places(backbone: nn.Module, block: int) -> dict[int, int]:
    """Return the channels before every block or stage after the merge; after the last there is one place too."""
    last = trunk.depth(backbone)
    return {index: trunk.width(backbone, index) for index in range(block, max(last, block + 1))}


def _freeze(model: Prea) -> None:
    model.backbone.requires_grad_(False)
    found: Any = model.get_classifier()
    for head in found if isinstance(found, tuple) else (found,):
        head.requires_grad_(True)


def detach(model: Prea) -> nn.Module:
    """Return a copy of the backbone inside, as an ordinary timm model, all of it trainable again.

    Tied weights are written out dense. At merge block 0 nothing but the adapters is lost (and, in Swin V2, the average
    of the bias networks); at later blocks the merge is gone and with it the guarantee. Low-rank adapters are kept:
    merge them first (``merge_lora``) for timm's own names.
    """
    backbone: nn.Module = copy.deepcopy(model.backbone)
    if model.fields == "regular":
        regular.make_dense(backbone, model.group, model.orbits)
    else:
        untie(backbone, model.group, model.orbits, fit=False)
    return backbone.requires_grad_(True)

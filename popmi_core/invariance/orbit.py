"""What the methods over an orbit share: all copies in one batch, turned back and summed by weights; what is trained."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from popmi_core.adapters import trunk
from popmi_core.errors import ModelError
from popmi_core.groups import FiniteAction, orbit
from popmi_core.invariance.method import Phase, Train


class Parts(NamedTuple):
    """What M1 gives: ``placed`` is moved by the group, ``free`` is not, ``key`` is what weights are computed from."""

    placed: Tensor  # [n, ...]
    free: Tensor | None  # [n, ...]
    key: Float[Tensor, "n dim"]


class Stages(Protocol):
    """A model M cut in two: M1 up to the last features that the group moves, M2 the rest."""

    def front(self, model: nn.Module, inputs: Tensor) -> Parts:
        """Return M1(inputs)."""

    def back(self, model: nn.Module, placed: Tensor, free: Tensor | None) -> Tensor:
        """Return M2 of what ``front`` gave."""

    def width(self, model: nn.Module) -> int:
        """Return the width of ``key``."""


class ImageStages:
    """A timm classifier cut at its last feature map [n, dim, side, side]; class and register tokens are free."""

    def front(self, model: nn.Module, inputs: Float[Tensor, "n c side side"]) -> Parts:
        """Return the last feature map.

        Raises:
            ModelError: If the features are no square map.
        """
        backbone: Any = model
        grid, prefix = trunk.to_grid(backbone, backbone.forward_features(inputs))
        return Parts(grid.permute(0, 3, 1, 2), prefix, grid.mean(dim=(1, 2)))

    def back(
        self, model: nn.Module, placed: Float[Tensor, "n dim side side"], free: Tensor | None
    ) -> Float[Tensor, "n classes"]:
        """Return the logits of a feature map."""
        backbone: Any = model
        logits: Tensor = backbone.forward_head(trunk.from_grid(backbone, placed.permute(0, 2, 3, 1), free))
        return logits

    def width(self, model: nn.Module) -> int:
        """Return the number of channels of the map."""
        return trunk.width(model)


class OrbitModel(nn.Module):
    """A backbone (``backbone.``) run on every g x; ``added`` are the prefixes of what a method adds to it.

    A backbone of which nothing but the head is trained stays in evaluation mode, so that no statistic of it moves:
    call ``train()`` after the parameters of a phase were chosen.
    """

    added: ClassVar[tuple[str, ...]] = ()

    def __init__(self, backbone: nn.Module, action: FiniteAction, *, train: Train = "all") -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.action = action
        self.trained = train
        self.pretrained_cfg = getattr(backbone, "pretrained_cfg", {})

    def phases(self) -> tuple[Phase, ...]:
        """Return one phase (the head and what the method adds, or all), or none where nothing is trained.

        Raises:
            ModelError: If the head is to be trained and the backbone does not say which it is.
        """
        if self.trained == "none":
            return ()
        names = self.head_names() if self.trained == "head" else ("",)
        return (Phase(self.trained, 1.0, names),)

    def head_names(self) -> tuple[str, ...]:
        """Return the prefixes of the classifier's parameters and of what the method adds.

        Raises:
            ModelError: If the backbone does not say which module its classifier is.
        """
        head = self.get_classifier()
        names = tuple(f"backbone.{name}." for name, module in self.backbone.named_modules() if module is head)
        if not names:
            raise ModelError(
                f"{type(self.backbone).__name__} does not say which module is its classifier. "
                "Train all parameters, or choose a backbone with one head."
            )
        return (*names, *self.added)

    def get_classifier(self) -> nn.Module:
        """Return the head, as timm's models do."""
        head: nn.Module = getattr(self.backbone, "get_classifier", nn.Module)()
        return head

    def train(self, mode: bool = True) -> Self:
        """Switch training on or off, a frozen backbone excepted."""
        super().train(mode)
        head = set(self.get_classifier().parameters()) if isinstance(self.get_classifier(), nn.Module) else set()
        if not any(one.requires_grad for one in self.backbone.parameters() if one not in head):
            self.backbone.eval()
        return self

    def copies(self, inputs: Tensor) -> Tensor:
        """Return the backbone's outputs for every g x: [order, n, ...]."""
        outputs: Tensor = self.backbone(orbit(self.action, inputs))
        return by_element(self.action, outputs)


class FeatureOrbit(OrbitModel):
    """M2( sum_g share_g(x) g^-1 M1(g x) ): exact whenever ``shares`` turns a permuted orbit into permuted shares.

    Args:
        backbone: M, left as it is.
        action: How the group moves inputs.
        features: How it moves ``placed`` features; the same way as inputs if None.
        stages: How M is cut; at a timm classifier's last feature map if None.
        train: What ``phases`` trains.
    """

    def __init__(
        self,
        backbone: nn.Module,
        action: FiniteAction,
        *,
        features: FiniteAction | None = None,
        stages: Stages | None = None,
        train: Train = "all",
    ) -> None:
        super().__init__(backbone, action, train=train)
        self.features = action if features is None else features
        self.stages: Stages = ImageStages() if stages is None else stages

    def shares(self, keys: Float[Tensor, "order n dim"]) -> Float[Tensor, "order n"]:
        """Return the weight of every copy; they sum to one for every image. Here all are equal."""
        return keys.new_full(keys.shape[:2], 1 / len(keys))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits [n, classes] of images [n, c, side, side] (or what ``stages`` gives)."""
        placed, free, key = self.stages.front(self.backbone, orbit(self.action, inputs))
        shares = self.shares(by_element(self.action, key))
        copies = by_element(self.action, placed)
        turned = torch.stack([self.features.undo(index, copy) for index, copy in enumerate(copies)])
        merged = weighted_sum(shares, turned)
        kept = None if free is None else weighted_sum(shares, by_element(self.action, free))
        return self.stages.back(self.backbone, merged, kept)


def by_element(action: FiniteAction, outputs: Tensor) -> Tensor:
    """Return outputs of ``orbit`` [order * n, ...] as [order, n, ...]."""
    return outputs.reshape(len(action), len(outputs) // len(action), *outputs.shape[1:])


def weighted_sum(shares: Float[Tensor, "order n"], copies: Tensor) -> Tensor:
    """Return sum_g shares[g] copies[g] for copies [order, n, ...]."""
    return (shares.reshape(*shares.shape, *[1] * (copies.ndim - 2)) * copies).sum(dim=0)

"""Low-rank adapters on linear layers: ``W x + (alpha / rank) B A x`` (Hu et al. 2021, arXiv:2106.09685, equation 3).

The base weight keeps its name (``<layer>.weight``); beside it lie ``<layer>.lora_A.weight`` [rank, in] and
``<layer>.lora_B.weight`` [out, rank]. So timm's names stay, and merging gives a plain timm state dict.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from popmi_core.adapters.merge import KERNEL, TABLE, OrbitMerge
from popmi_core.errors import ModelError


class LoraLinear(nn.Module):
    """A linear layer with a low-rank adapter; it takes over the base's own parameters.

    Args:
        base: The layer; its weight and bias are shared, not copied.
        rank: Rows of A, columns of B.
        alpha: The adapter's output is scaled by ``alpha / rank``; None means ``rank``, so by one.
        generator: Draws A (normal, variance ``1 / in_features``); B starts at zero, so that nothing changes at first.

    Raises:
        ModelError: If the rank is not between 1 and the layer's smaller side.
    """

    def __init__(
        self, base: nn.Linear, rank: int, alpha: float | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if not 1 <= rank <= min(base.in_features, base.out_features):
            raise ModelError(
                f"a layer of {base.in_features} -> {base.out_features} takes no adapter of rank {rank}. Choose 1 to "
                f"{min(base.in_features, base.out_features)}."
            )
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.scaling = (rank if alpha is None else alpha) / rank
        # Uninitialised: torch's own start would draw from the global generator.
        self.lora_A = skip_init(nn.Linear, base.in_features, rank, bias=False).to(base.weight)
        self.lora_B = skip_init(nn.Linear, rank, base.out_features, bias=False).to(base.weight)
        with torch.no_grad():
            drawn = torch.randn(rank, base.in_features, generator=generator) / math.sqrt(base.in_features)
            self.lora_A.weight.copy_(drawn)
            self.lora_B.weight.zero_()

    def forward(self, inputs: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return the base layer's output plus the adapter's."""
        step: Tensor = self.lora_B(self.lora_A(inputs))
        return functional.linear(inputs, self.weight, self.bias) + self.scaling * step

    def merged(self) -> nn.Linear:
        """Return an ordinary layer that computes the same."""
        plain: nn.Linear = skip_init(nn.Linear, self.in_features, self.out_features, bias=self.bias is not None)
        plain = plain.to(self.weight)
        with torch.no_grad():
            plain.weight.copy_(self.weight + self.scaling * self.lora_B.weight @ self.lora_A.weight)
            if self.bias is not None:
                plain.bias.copy_(self.bias)
        return plain


def add_lora(
    model: nn.Module,
    targets: Sequence[str] = ("attn.qkv", "attn.proj"),
    *,
    rank: int = 8,
    alpha: float | None = None,
    train: Literal["all", "adapter"] = "adapter",
    seed: int = 0,
) -> nn.Module:
    """Return a copy of ``model`` with an adapter on every linear layer whose name ends in one of ``targets``.

    Args:
        model: Any model; it is not changed.
        targets: Ends of layer names.
        rank: Rank of every adapter.
        alpha: See ``LoraLinear``.
        train: ``adapter``: only adapters, PREA's and what ``soften`` added too, and the classifier (where the model has
            ``get_classifier``) are trained and exchanged; ``all``: everything.
        seed: Fixes the start of every A.

    Raises:
        ModelError: If no layer has such a name, a named layer is not linear, or the rank does not fit.
    """
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    if train == "adapter":
        model.requires_grad_(False)
        for kept in (*_classifiers(model), *(part for part in model.modules() if isinstance(part, OrbitMerge))):
            kept.requires_grad_(True)
        for name, tensor in model.named_parameters():
            if name.rpartition(".")[2] in (TABLE, KERNEL):
                tensor.requires_grad_(True)
    found = [name for name, _ in model.named_modules() if any(f".{name}".endswith(f".{end}") for end in targets)]
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no layer that ends in {', '.join(targets)}. Name others (lora.targets)."
        )
    for name in found:
        parent, _, last = name.rpartition(".")
        owner: Any = model.get_submodule(parent)
        layer = model.get_submodule(name)
        if type(layer) is not nn.Linear:
            kind = f"{type(layer).__module__}.{type(layer).__name__}"
            raise ModelError(f"'{name}' is a {kind}, expected torch.nn.Linear itself. Take it off the targets.")
        if hasattr(owner, "qkv_bias_separate"):
            # Swin V2 otherwise takes the weight out of the layer and never calls it.
            owner.qkv_bias_separate = True
        setattr(owner, last, LoraLinear(layer, rank, alpha, generator=generator))
    return model.train(model.training)


def merge_lora(model: nn.Module) -> nn.Module:
    """Return a copy without adapters that computes the same: plain layers, timm's own state dict, all trainable."""
    model = copy.deepcopy(model)
    for name, layer in list(_adapted(model)):
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer.merged().train(layer.training))
    return model.requires_grad_(True)


def scalings(model: nn.Module) -> dict[str, float]:
    """Return ``alpha / rank`` of every adapted layer by its name."""
    return {name: layer.scaling for name, layer in _adapted(model)}


def _adapted(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLinear))


def _classifiers(model: Any) -> tuple[nn.Module, ...]:
    found = model.get_classifier() if hasattr(model, "get_classifier") else ()
    return found if isinstance(found, tuple) else (found,)

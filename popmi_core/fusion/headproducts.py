"""What every attention head computes, free of the basis inside it: the factors of its two products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from popmi_core.adapters.regular import is_regular

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class HeadProducts:
    """One attention layer. ``query^T key`` gives the scores, ``output^T value`` what is written.

    The query carries its bias as one more column. Only the products mean something: the factors' basis is free.
    """

    query: Float[Tensor, "heads head_dim dim_and_bias"]
    key: Float[Tensor, "heads head_dim dim"]
    value: Float[Tensor, "heads head_dim dim"]
    output: Float[Tensor, "heads head_dim dim"]


def head_products(model: nn.Module, state: State) -> dict[str, HeadProducts]:
    """Return the products of every softmax attention (``qkv``, ``proj``, ``num_heads``) of a timm model, by module.

    Norms before the attention are not in them: fold them first (``canonicalise``) to compare two models. Cosine
    attention (Swin-V2) is left out: its scores are not a product of weights.
    """
    return {
        name: _read(state, name, module.num_heads)
        for name, module in model.named_modules()
        if _is_attention(module) and f"{name}.qkv.weight" in state
    }


def _is_attention(module: nn.Module) -> bool:
    layers = (getattr(module, "qkv", None), getattr(module, "proj", None))
    # Between regular fields what is stored is no dense weight.
    linear = all(isinstance(layer, nn.Linear) and not is_regular(layer) for layer in layers)
    return linear and isinstance(getattr(module, "num_heads", None), int) and not hasattr(module, "logit_scale")


def _read(state: State, name: str, heads: int) -> HeadProducts:
    weight, proj = state[f"{name}.qkv.weight"].double(), state[f"{name}.proj.weight"].double()
    query, key, value = weight.reshape(3, heads, -1, weight.shape[1])
    if f"{name}.qkv.bias" in state:
        bias = state[f"{name}.qkv.bias"].double().reshape(3, heads, -1, 1)[0]
        query = torch.cat([query, bias], dim=-1)
    return HeadProducts(query, key, value, proj.T.reshape(heads, -1, proj.shape[0]))

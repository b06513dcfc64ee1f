"""Layers that commute with D4 exactly: they store the free coefficients of each isotypic block and nothing else.

A feature of width C is C/8 regular fields in slabs (``popmi_core.groups.octic``): channel = slab * copies + copy.
Octic Vision Transformers (Nordstroem et al. 2025, arXiv:2505.15441) and "Flopping for FLOPs" (Boekman et al. 2025,
arXiv:2502.05169) describe the idea; a linear layer takes 3/16 of the multiplications of a dense one (divided by 5.33).

Layers take and give tokens [n, tokens, channels] that lie in memory by channel, each over all tokens of the batch: then
slabs, heads and copies are views, and joining them copies long runs. Other tensors of this shape are taken as well.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from timm.layers.config import use_fused_attn
from torch import Tensor, nn
from torch.nn import functional

from popmi_core.errors import ModelError
from popmi_core.groups.octic import LINES, matrix_entries, shares

_EPSILON = 1e-6
# On a CPU plain products by channel cost less than the fused kernel and its turned copies, up to so many tokens.
_FEW_TOKENS = 256
# Two tensors of one shape, or: the four lines, and E by its two components.
Pair = tuple[Tensor, Tensor]


class Fourier(nn.Module):
    """The change of basis between slabs and group elements, in the number format of what it is applied to.

    The half turn r is +1 on lines and -1 on E, so values at h and h r are sum and difference of what the lines and what
    E make of h: two products by 4 x 4 tables, a sum and a difference take the place of one product by 8 x 8.
    """

    entries: Tensor
    shares: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Roots are taken in use: these numbers are exact in every format a model may be cast to.
        self.register_buffer("entries", matrix_entries().float(), persistent=False)
        self.register_buffer("shares", shares().float(), persistent=False)

    def table(self) -> Float[Tensor, "8 8"]:
        """Return F: slabs x elements, orthogonal."""
        return self.entries * self.shares.sqrt()[:, None]

    def regular(self, lines: Float[Tensor, "4 rest"], planes: Float[Tensor, "4 rest"]) -> Pair:
        """Return the values at 1, r, s, r s (r: a quarter turn, s: the mirror), and at those turned by a half."""
        first, second = self.halves()
        even, odd = first.T @ lines, second.T @ planes
        return even + odd, even - odd

    def slabs(self, values: Pair) -> Pair:
        """Return lines and planes [4, rest] of such values."""
        first, second = self.halves()
        return first @ (values[0] + values[1]), second @ (values[0] - values[1])

    def halves(self) -> Pair:
        """Return F of the lines and of E at the four elements 1, r, s and r s."""
        table = self.table().unflatten(1, (2, 2, 2))[:, :, 0].flatten(1)
        return table[:4], table[4:]


class OcticLinear(nn.Module):
    """An equivariant linear layer: four (out/8 x in/8) blocks, and one (out/4 x in/4) block for both parts of E.

    ``bias`` [out/8] lies on A1, the one part that a constant may have.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.copies_in, self.copies_out = copies(inputs), copies(outputs)
        self.a1, self.a2, self.b1, self.b2 = (nn.Parameter(torch.empty(self.copies_out, self.copies_in)) for _ in LINES)
        self.e = nn.Parameter(torch.empty(2 * self.copies_out, 2 * self.copies_in))
        self.bias = nn.Parameter(torch.zeros(self.copies_out))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights with which inputs of mean square 1 give such outputs: GELU must see its bend to mix slabs."""
        for weight in (*self.line_weights(), self.e):
            nn.init.trunc_normal_(weight, std=weight.shape[1] ** -0.5)
        nn.init.zeros_(self.bias)

    def line_weights(self) -> list[Tensor]:
        """Return the blocks of A1, A2, B1 and B2."""
        return [self.a1, self.a2, self.b1, self.b2]

    def products(self, lines: Float[Tensor, "4 inputs rows"], planes: Float[Tensor, "2 inputs2 rows"]) -> Pair:
        """Return the lines [4, out/8, rows] and E by component [2, out/4, rows] of the result."""
        weight = torch.stack(self.line_weights())
        start = functional.pad(self.bias[None, :, None], (0, 0, 0, 0, 0, 3))
        return torch.baddbmm(start, weight, lines), torch.bmm(self.e.expand(2, -1, -1), planes)

    def forward(self, features: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return the map of every token."""
        return join(self.products(*split(features)), features.shape[:-1])


class OcticNorm(nn.Module):
    """Divide every token by its root mean square: a length that the group does not change.

    Without centring (the mean of channels is not invariant) and without gains, which the linear map behind it has in
    its columns: so any rotation of the copies of one irreducible leaves the function alone.
    """

    def forward(self, features: Float[Tensor, "*batch channels"]) -> Float[Tensor, "*batch channels"]:
        """Return tokens of root mean square 1."""
        columns = features.flatten(0, -2).T  # written out, so that gradients lie by channel as well
        mean_square = (columns * columns).mean(dim=0, keepdim=True)
        return (columns * (mean_square + _EPSILON).rsqrt()).unflatten(1, features.shape[:-1]).movedim(0, -1)


class OcticAttention(nn.Module):
    """Softmax attention whose heads are whole fields: inner products of queries and keys are invariant.

    Rows of ``qkv`` are queries, keys and values, of E each its first copies and its second; then heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if copies(width) % heads:
            raise ModelError(
                f"octic attention: {heads} heads do not divide the {copies(width)} fields of width {width}. "
                "Choose a width that is a multiple of 8 times the heads."
            )
        self.heads = heads
        self.qkv = OcticLinear(width, 3 * width)
        self.proj = OcticLinear(width, width)

    def forward(self, tokens: Float[Tensor, "n tokens width"]) -> Float[Tensor, "n tokens width"]:
        """Return what each token takes from all, projected."""
        count, length = tokens.shape[:2]
        mixed = attend(*self.heads_of(*self.qkv.products(*split(tokens)), count))
        fields = mixed.unflatten(0, (8, -1)).transpose(1, 2).reshape(8, -1, count * length)  # slabs, heads x copies
        return join(self.proj.products(fields[:4], fields[4:].reshape(2, -1, count * length)), (count, length))

    def heads_of(self, lines: Tensor, planes: Tensor, count: int) -> tuple[Tensor, ...]:
        """Return queries, keys and values of ``count`` images: [channels, heads, n, tokens], channels slab by slab."""
        apart = [lines.unflatten(1, (3, self.heads, -1)).permute(1, 0, 3, 2, 4)]
        for component in planes.unflatten(1, (3, 2, self.heads, -1)).unbind(0):
            apart.append(component.transpose(2, 3))
        return torch.cat(apart, dim=1).flatten(1, 2).unflatten(-1, (count, -1)).unbind(0)


class OcticMlp(nn.Module):
    """Linear, GELU on the values at the group's elements, linear: GELU of a regular field commutes with the group."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = OcticLinear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = OcticLinear(hidden, width)
        self.fourier = Fourier()

    def forward(self, tokens: Float[Tensor, "n tokens width"]) -> Float[Tensor, "n tokens width"]:
        """Return the map of every token."""
        lines, planes = self.fourier.slabs(active_fields(self.fc1, self.act, self.fourier, tokens))
        rows = tokens.shape[:2].numel()
        return join(self.fc2.products(lines.view(4, -1, rows), planes.view(2, -1, rows)), tokens.shape[:2])


class OcticBlock(nn.Module):
    """Attention and MLP, each behind a norm and added to the stream, as in a pre-norm ViT."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = OcticNorm()
        self.attn = OcticAttention(width, heads)
        self.norm2 = OcticNorm()
        self.mlp = OcticMlp(width, int(width * mlp_ratio))

    def forward(self, tokens: Float[Tensor, "n tokens width"]) -> Float[Tensor, "n tokens width"]:
        """Return the stream after the block."""
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class OcticReadout(nn.Module):
    """Invariants of a token: hidden fields, GELU, and A1 of each, the sum over the group over the root of eight."""

    def __init__(self, width: int, invariants: int) -> None:
        super().__init__()
        self.fc = OcticLinear(width, 8 * invariants)
        self.act = nn.GELU()
        self.fourier = Fourier()

    def forward(self, tokens: Float[Tensor, "n tokens width"]) -> Float[Tensor, "n tokens invariants"]:
        """Return one number a hidden field."""
        values = active_fields(self.fc, self.act, self.fourier, tokens)
        summed = values[0].sum(dim=0) + values[1].sum(dim=0)
        return (summed * 8**-0.5).view(-1, *tokens.shape[:2]).movedim(0, -1)


def active_fields(layer: OcticLinear, act: nn.Module, fourier: Fourier, tokens: Float[Tensor, "*batch width"]) -> Pair:
    """Return ``act`` of the values of ``layer``'s fields, as ``Fourier.regular`` does: each [4, fields * rows]."""
    lines, planes = layer.products(*split(tokens))
    values = fourier.regular(lines.view(4, -1), planes.view(4, -1))
    return act(values[0]), act(values[1])


def attend(query: Tensor, key: Tensor, value: Tensor) -> Float[Tensor, "channels heads n tokens"]:
    """Return softmax attention of [channels, heads, n, tokens]; fused where that is faster and timm's switch allows."""
    if use_fused_attn() and (query.is_cuda or query.shape[-1] > _FEW_TOKENS):
        query, key, value = (part.permute(2, 1, 3, 0).contiguous() for part in (query, key, value))
        return functional.scaled_dot_product_attention(query, key, value).permute(3, 1, 0, 2)
    batch = query.shape[1:3]
    query, key, value = (part.flatten(1, 2).transpose(0, 1) for part in (query, key, value))
    weights = (key.mT @ (query * query.shape[1] ** -0.5)).softmax(dim=1)  # keys x queries: as the values need them
    return (value @ weights).transpose(0, 1).unflatten(1, batch)


def split(tokens: Float[Tensor, "*batch channels"]) -> Pair:
    """Return views of the lines [4, copies, rows] and of E by component [2, 2 copies, rows]."""
    columns = tokens.flatten(0, -2).T
    half = len(columns) // 2
    return columns[:half].unflatten(0, (4, -1)), columns[half:].unflatten(0, (2, -1))


def join(products: Pair, batch: tuple[int, ...]) -> Float[Tensor, "*batch channels"]:
    """Return tokens whose lines [4, copies, rows] and E [2, 2 copies, rows] these are."""
    return torch.cat([part.flatten(0, 1) for part in products]).unflatten(1, batch).movedim(0, -1)


def copies(width: int) -> int:
    """Return the number of regular fields of a width.

    Raises:
        ModelError: If the width is not a multiple of eight.
    """
    if width < 8 or width % 8:
        raise ModelError(f"octic layer: width {width} is not whole fields of 8 channels. Choose a multiple of 8.")
    return width // 8

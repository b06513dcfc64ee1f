"""A vision transformer that is exactly D4-invariant from the first step of training on, whatever its weights."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from popmi_core.errors import ModelError
from popmi_core.groups import act, grid_permutation
from popmi_core.groups.octic import D4
from popmi_core.models.octic.layers import Fourier, OcticBlock, OcticNorm, OcticReadout, copies
from popmi_core.models.octic.symmetry import describe_octic


class OcticPatchEmbed(nn.Module):
    """Lift image patches to regular fields: ``f(h) = <h psi, patch>`` with one free kernel psi a field.

    ``proj`` [copies, in, side, side] is psi: an eighth of a dense kernel's numbers.
    """

    def __init__(self, img_size: int, patch_size: int, in_chans: int, width: int) -> None:
        super().__init__()
        if img_size % patch_size:
            raise ModelError(
                f"octic patches of {patch_size} pixels do not tile {img_size}x{img_size}: turning the image would "
                "move what is cut off. Change the image or the patch size."
            )
        self.img_size, self.patch_size, self.in_chans = (img_size, img_size), patch_size, in_chans
        self.grid_side = img_size // patch_size
        self.proj = nn.Parameter(torch.empty(copies(width), in_chans, patch_size, patch_size))
        self.bias = nn.Parameter(torch.zeros(copies(width)))
        self.fourier = Fourier()
        nn.init.trunc_normal_(self.proj, std=(in_chans * patch_size**2) ** -0.5)

    def kernel(self) -> Float[Tensor, "width in side side"]:
        """Return the dense kernel whose output channels are slabs."""
        turned = torch.stack([act(element, self.proj) for element in D4.elements])
        return (self.fourier.table() @ turned.flatten(1)).view(-1, *self.proj.shape[1:])

    def forward(self, images: Float[Tensor, "n in side side"]) -> Float[Tensor, "n tokens width"]:
        """Return one token a patch, row by row; in memory by channel."""
        bias = functional.pad(self.bias, (0, 7 * len(self.bias)))
        maps = functional.conv2d(images, self.kernel(), bias, stride=self.patch_size)
        return maps.flatten(2).transpose(0, 1).contiguous().permute(1, 2, 0)


class OcticPositions(nn.Module):
    """A table of fields that turns with the grid: ``p(x)(h) = table(h^-1 x)`` with a free table [1, cells, copies].

    That is all there is: cells that a mirror fixes get vectors the mirror fixes, without a case for them.
    """

    orders: Tensor

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        # tokens[perm] is the grid after the element, whose cell x shows what was at h^-1 x.
        orders = torch.stack([grid_permutation(element, side) for element in D4.elements])
        self.register_buffer("orders", orders, persistent=False)
        self.table = nn.Parameter(torch.empty(1, side * side, copies(width)))
        self.fourier = Fourier()
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self) -> Float[Tensor, "1 cells width"]:
        """Return the dense table in slabs."""
        values = self.table[0][self.orders]  # elements, cells, copies
        slabs = (self.fourier.table() @ values.flatten(1)).view(values.shape)
        return slabs.transpose(0, 1).flatten(1)[None]


class OcticVit(nn.Module):
    """Patches, positions, blocks, norm, invariants of the tokens, classes; the interface is that of timm's models.

    Features are tokens [n, tokens, width] in slabs (``popmi_core.groups.octic``). The class token, where there is
    one, starts in A1: the group leaves it alone. ``num_features`` counts the invariants that the head reads.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 64,
        patch_size: int = 8,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 96,
        depth: int = 4,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        class_token: bool = False,
        global_pool: Literal["avg", "token"] = "avg",
    ) -> None:
        super().__init__()
        side = square_side(img_size)
        if global_pool == "token" and not class_token:
            raise ModelError("octic ViT: global_pool 'token' needs class_token=True. Set it, or pool by 'avg'.")
        self.num_classes, self.embed_dim, self.global_pool = num_classes, embed_dim, global_pool
        self.num_features = self.head_hidden_size = embed_dim // 2
        self.num_prefix_tokens, self.num_heads = int(class_token), num_heads
        self.patch_embed = OcticPatchEmbed(side, patch_size, in_chans, embed_dim)
        self.pos_embed = OcticPositions(self.patch_embed.grid_side, embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, copies(embed_dim))) if class_token else None
        self.blocks = nn.Sequential(*[OcticBlock(embed_dim, num_heads, mlp_ratio) for _ in range(depth)])
        self.norm = OcticNorm()
        self.readout = OcticReadout(embed_dim, self.num_features)
        self.head: nn.Module = nn.Identity()
        self.reset_classifier(num_classes)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward_features(self, images: Float[Tensor, "n in side side"]) -> Float[Tensor, "n tokens width"]:
        """Return the normalised tokens, the class token first: they turn with the image, and their fields with them."""
        tokens = self.patch_embed(images) + self.pos_embed()
        if self.cls_token is not None:
            start = functional.pad(self.cls_token, (0, 7 * self.cls_token.shape[-1]))
            parts = start.expand(tokens.shape[0], -1, -1), tokens
            tokens = torch.cat([part.movedim(-1, 0) for part in parts], dim=2).movedim(0, -1)  # in memory by channel
        return self.norm(self.blocks(tokens))

    def forward_head(self, features: Float[Tensor, "n tokens width"], pre_logits: bool = False) -> Tensor:
        """Return logits [n, classes], or with ``pre_logits`` the invariants [n, num_features] that the head reads."""
        read = features[:, :1] if self.global_pool == "token" else features[:, self.num_prefix_tokens :]
        pooled: Tensor = self.readout(read).mean(dim=1)
        return pooled if pre_logits else self.head(pooled)

    def forward(self, images: Float[Tensor, "n in side side"]) -> Float[Tensor, "n classes"]:
        """Return the logits of normalised images."""
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer; the pooling stays as it was built."""
        del global_pool
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        if isinstance(self.head, nn.Linear):
            nn.init.trunc_normal_(self.head.weight, std=self.num_features**-0.5)
            nn.init.zeros_(self.head.bias)

    def describe_symmetry(self, build: Any) -> None:
        """Tell what may move (``build``: a Builder of popmi_core.matching): only what commutes with D4."""
        describe_octic(build, depth=len(self.blocks), heads=self.num_heads, copies=copies(self.embed_dim))

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that timm's optimisers do not decay."""
        return {"pos_embed.table", "cls_token"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Refuse: blocks this small are not worth running twice."""
        if enable:
            raise ModelError("octic ViT has no gradient checkpointing. Leave it off, or use smaller batches.")


def square_side(img_size: Any) -> int:
    """Return the side of square images.

    Raises:
        ModelError: If height and width differ.
    """
    height, width = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if height != width:
        raise ModelError(f"octic ViT: images are {height}x{width} pixels, expected square ones. Crop or pad them.")
    return int(height)

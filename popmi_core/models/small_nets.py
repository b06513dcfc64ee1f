"""Small models of four families for studies of matching and fusion, registered with timm under their own names."""

from __future__ import annotations

from functools import partial
from typing import Any

from jaxtyping import Float
from timm.layers.norm import GroupNorm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from popmi_core.models.presets import create_vit, default_cfg

STUDY_NETS = ("popmi_vit_64", "popmi_vit_128", "popmi_mlp", "popmi_resnet20", "popmi_resnet20_gn")

_SIZE = 28
_CONV = {"fixed_input_size": False, "pool_size": (4, 4), "first_conv": "conv1", "classifier": "fc"}

default_cfgs = generate_default_cfgs(
    {
        "popmi_vit_64": default_cfg(_SIZE),
        "popmi_vit_128": default_cfg(_SIZE),
        "popmi_mlp": {**default_cfg(_SIZE), "first_conv": "fc1"},
        "popmi_resnet20": {**default_cfg(_SIZE), **_CONV},
        "popmi_resnet20_gn": {**default_cfg(_SIZE), **_CONV},
    }
)


class Mlp(nn.Module):
    """Flattened pixels -> two hidden layers with GELU -> classes; nothing else, no norm."""

    def __init__(
        self,
        img_size: int | tuple[int, int] = _SIZE,
        in_chans: int = 3,
        num_classes: int = 1000,
        hidden: int = 512,
        **_: Any,
    ) -> None:
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.img_size, self.in_chans, self.num_classes = (height, width), in_chans, num_classes
        self.num_features = self.head_hidden_size = hidden
        self.fc1 = nn.Linear(in_chans * height * width, hidden)
        self.act1 = nn.GELU()
        self.fc2 = nn.Linear(hidden, hidden)
        self.act2 = nn.GELU()
        self.head: nn.Module = nn.Linear(hidden, num_classes) if num_classes > 0 else nn.Identity()

    def forward_features(self, images: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n hidden"]:
        """Return the second hidden layer."""
        return self.act2(self.fc2(self.act1(self.fc1(images.flatten(1)))))

    def forward_head(self, features: Float[Tensor, "n hidden"], pre_logits: bool = False) -> Float[Tensor, "n out"]:
        """Return the logits, or with ``pre_logits`` what the head reads."""
        return features if pre_logits else self.head(features)

    def forward(self, images: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n classes"]:
        """Return the logits of normalised images."""
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer; there is nothing to pool."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()


class SmallResNet(ResNet):
    """timm's ResNet in the CIFAR shape of He et al. (2016, arXiv:1512.03385, section 4.2): 16, 32, 64 channels.

    Two things differ from the paper: the 3x3 stem has ``stem_stride`` 2 instead of 1, so that an image costs a quarter,
    and the shortcuts of stages 2 and 3 are 1x1 convolutions, as timm makes them. There is no max-pool.
    """

    def __init__(
        self,
        norm_layer: Any = nn.BatchNorm2d,
        in_chans: int = 3,
        layers: tuple[int, int, int] = (3, 3, 3),
        stem_stride: int = 2,
        **kwargs: Any,
    ) -> None:
        channels = (16, 32, 64)
        block: Any = BasicBlock  # timm's annotation asks for an instance
        super().__init__(block, layers, in_chans=in_chans, channels=channels, norm_layer=norm_layer, **kwargs)
        # timm's stem is 64 channels wide whatever the stages are, and it runs a fourth stage in any case.
        stem = nn.Conv2d(in_chans, channels[0], 3, stride=stem_stride, padding=1, bias=False)
        first = BasicBlock(channels[0], channels[0], norm_layer=norm_layer)
        for module in (stem, first):
            module.apply(_he_init)
        first.zero_init_last()
        later = list(self.get_submodule("layer1").children())[1:]
        replaced = {"conv1": stem, "bn1": norm_layer(channels[0]), "maxpool": nn.Identity()}
        replaced |= {"layer1": nn.Sequential(first, *later), "layer4": nn.Sequential()}
        for name, module in replaced.items():
            self.add_module(name, module)
        self.feature_info[0]["num_chs"] = channels[0]


def _he_init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


@register_model
def popmi_vit_64(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Return a ViT with class token, width 64, three blocks of four heads, 7x7 patches of 28x28 images."""
    shape = {"img_size": _SIZE, "patch_size": 7, "embed_dim": 64, "depth": 3, "num_heads": 4, "qkv_bias": True}
    return create_vit("popmi_vit_64", pretrained, **{**shape, **kwargs})


@register_model
def popmi_vit_128(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Return ``popmi_vit_64`` at width 128."""
    shape = {"img_size": _SIZE, "patch_size": 7, "embed_dim": 128, "depth": 3, "num_heads": 4, "qkv_bias": True}
    return create_vit("popmi_vit_128", pretrained, **{**shape, **kwargs})


@register_model
def popmi_mlp(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Return an MLP with two hidden layers of 512 units for 28x28 images."""
    return build_model_with_cfg(Mlp, "popmi_mlp", pretrained, **kwargs)


@register_model
def popmi_resnet20(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """Return ResNet-20 with BatchNorm; its stem halves the image (see ``SmallResNet``)."""
    return build_model_with_cfg(SmallResNet, "popmi_resnet20", pretrained, **kwargs)


@register_model
def popmi_resnet20_gn(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """Return ResNet-20 with GroupNorm, eight groups a layer."""
    norm = partial(GroupNorm, num_groups=8)
    return build_model_with_cfg(SmallResNet, "popmi_resnet20_gn", pretrained, **{"norm_layer": norm, **kwargs})

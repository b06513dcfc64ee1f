"""The words in which convolutional networks are described: channels, the convolutions between them, what rides on them.

A norm decides how channels may move: BatchNorm and LayerNorm let every permutation pass, GroupNorm only those that
keep its groups together (inside a group any order). A convolution with groups ties what it reads to what it writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from timm.layers.eca import CecaModule, EcaModule
from timm.layers.norm import RmsNorm, RmsNorm2d, SimpleNorm, SimpleNorm2d
from timm.layers.norm_act import FrozenBatchNormAct2d
from timm.layers.squeeze_excite import EffectiveSEModule, SEModule
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import nn

from popmi_core.adapters.lora import LoraLinear
from popmi_core.errors import ModelError
from popmi_core.matching.builder import BY_HAND, Builder

_BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNormAct2d)
_LAYER = (nn.LayerNorm, RmsNorm, RmsNorm2d, SimpleNorm, SimpleNorm2d)
_HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.Identity)


@dataclass(frozen=True)
class Channels:
    """A space, and how many neighbouring channels each of its entries stands for (then whole groups move)."""

    space: str
    spread: int = 1


class Layers:
    """A Builder that knows convolutions, norms and channel attention, and which spaces turn out to be fixed."""

    def __init__(self, build: Builder) -> None:
        self.build = build
        self.fixed: dict[str, str] = {}

    def open(
        self, name: str, width: int, norm: nn.Module, *, act: nn.Module | None = None, spread: int = 1
    ) -> Channels:
        """Declare the channels that a norm writes; ``act`` is what follows it (for scales, which only ReLU passes)."""
        groups = norm.num_groups if isinstance(norm, nn.GroupNorm) else 1
        grouped = 1 < groups < width
        if spread > 1:
            if grouped and spread % (width // groups):
                self.fix(name, "the groups of its norm and of its convolution overlap")
            self.build.space(name, "permutation", width // spread)
        elif grouped:
            self.build.space(name, "grouped", groups, inner=width // groups)
        else:
            carried = isinstance(norm, nn.Identity) or getattr(norm, "weight", None) is not None
            self.build.space(name, "permutation", width, rescalable=carried and passes_scale(act))
        return Channels(name, spread)

    def conv(
        self,
        name: str,
        layer: Any,
        *,
        reads: Channels | None = None,
        writes: Channels | None = None,
        normed: bool = True,
        tap: bool = True,
    ) -> None:
        """Describe a convolution or linear layer; None is what stays as it is (pixels, classes).

        Raises:
            ModelError: If it is another kind of layer, or its groups tie other channels than described.
        """
        self.width(name, layer)
        if writes is not None:
            for part in ("weight", "bias"):
                if self.build.has(f"{name}.{part}"):
                    self.build.axis(
                        f"{name}.{part}", 0, writes.space, spread=self._spread(name, layer, writes), scales=not normed
                    )
        self.build.still(f"{name}.weight", f"{name}.bias")
        if reads is None:
            return
        groups, width = self.groups(name, layer), self._width(reads)
        repeat = 1
        # A depthwise convolution of a single field has one group of it, and still reads no axis.
        if groups > 1 or self._depthwise(name, layer):
            if writes is None or writes.space != reads.space or groups != width:
                self.unknown(name, layer, f"a convolution with {width} groups or none")
        else:
            repeat = self.build.inputs(name) // (width * reads.spread)
            self.build.reads(name, reads.space, repeat=repeat, spread=reads.spread)
        if tap and reads.spread == 1:
            axis = 1 if isinstance(layer, nn.Conv2d) else -1
            self.build.tap(name, "input", axis, reads.space, stop=width if repeat > 1 else None)

    def width(self, name: str, layer: Any) -> int:
        """Return how many channels a convolution or linear layer writes (of a model of fields: how many fields).

        Raises:
            ModelError: If it is another kind of layer.
        """
        if not isinstance(layer, nn.Conv2d | nn.Linear | LoraLinear):
            self.unknown(name, layer, "a convolution or a linear layer")
        return self.build.shape(f"{name}.weight")[0]

    def groups(self, name: str, layer: Any) -> int:
        """Return the groups of a convolution; channel by channel means field by field in a model of fields."""
        groups: int = getattr(layer, "groups", 1)
        return groups // self.build.order if self._depthwise(name, layer) else groups

    def _depthwise(self, name: str, layer: Any) -> bool:
        return self.build.shape(f"{name}.weight")[1] == 1 < getattr(layer, "groups", 1)

    def norm(self, name: str, layer: nn.Module, channels: Channels, *, scales: bool = True) -> None:
        """Describe a norm; ``scales`` is False where another norm after it carries the scale of a unit.

        Raises:
            ModelError: If it is of another kind.
        """
        if isinstance(layer, nn.Identity):
            return
        if not isinstance(layer, (*_BATCH, *_LAYER, nn.GroupNorm)):
            self.unknown(name, layer, "a BatchNorm, GroupNorm or LayerNorm")
        for part in ("weight", "bias", "running_mean", "running_var"):
            if self.build.has(f"{name}.{part}"):
                affine = part in ("weight", "bias")
                self.build.axis(
                    f"{name}.{part}", 0, channels.space, spread=channels.spread, counts=affine, scales=affine and scales
                )
        self.build.still(f"{name}.num_batches_tracked")

    def conv_norm(
        self,
        conv: tuple[str, Any],
        norm: tuple[str, Any],
        *,
        reads: Channels | None,
        writes: Channels,
        scales: bool = True,
        tap: bool = True,
    ) -> None:
        """Describe a convolution and the norm after it, both given as (name, module)."""
        self.conv(*conv, reads=reads, writes=writes, normed=not isinstance(norm[1], nn.Identity), tap=tap)
        self.norm(*norm, writes, scales=scales)

    def excite(self, name: str, layer: Any, channels: Channels) -> None:
        """Describe channel attention; its reduced channels are a space of their own.

        Raises:
            ModelError: If it is of another kind.
        """
        if layer is None or isinstance(layer, nn.Identity):
            return
        if isinstance(layer, EcaModule | CecaModule):
            self.build.still(*(f"{name}.{tensor}" for tensor in layer.state_dict()))
            self.fix(channels.space, "its channel attention convolves neighbouring channels")
        elif isinstance(layer, EffectiveSEModule):
            self.conv(f"{name}.fc", layer.fc, reads=channels, writes=channels, tap=False)
        elif isinstance(layer, SEModule):
            self._squeeze(name, ("fc1", "bn", "fc2"), layer, layer.act, channels)
        elif isinstance(layer, SqueezeExcite):
            self._squeeze(name, ("conv_reduce", "bn", "conv_expand"), layer, layer.act1, channels)
        else:
            self.unknown(name, layer, "squeeze and excitation")

    def head(self, name: str, layer: nn.Module, channels: Channels) -> None:
        """Describe the last layer; without one the features are the output, so their channels stay."""
        if isinstance(layer, nn.Identity):
            self.fix(channels.space, "the features are the output")
        else:
            self.conv(name, layer, reads=channels, normed=False)

    def fix(self, space: str, reason: str) -> None:
        """Keep a space as it is; the reason goes into the notes."""
        self.fixed.setdefault(self.build.prefix + space, reason)

    def done(self) -> None:
        """Drop the fixed spaces from the description; their tensors are named as ones that stay."""
        build = self.build
        for space, reason in self.fixed.items():
            build.stills |= {axis.tensor for axis in build.axes if axis.space == space}
            build.axes = [axis for axis in build.axes if axis.space != space]
            build.taps = [tap for tap in build.taps if tap.space != space]
            del build.spaces[space]
            build.note(f"{space} fixed: {reason}")

    def unknown(self, name: str, module: object, expected: str) -> NoReturn:
        """Refuse a module.

        Raises:
            ModelError: Always; it names the module.
        """
        raise ModelError(
            f"{self.build.family}: module '{self.build.prefix}{name}' is {_short(module)}, expected {expected}. "
            f"{BY_HAND}; or take a rule that needs no description."
        )

    def _squeeze(self, name: str, parts: tuple[str, str, str], layer: Any, act: nn.Module, channels: Channels) -> None:
        reduce, bn, expand = parts
        norm = getattr(layer, bn, nn.Identity())
        first = (f"{name}.{reduce}", getattr(layer, reduce))
        inner = self.open(f"{name}.reduced", self.width(*first), norm, act=act)
        self.conv_norm(first, (f"{name}.{bn}", norm), reads=channels, writes=inner, tap=False)
        # What it writes is a gate between 0 and 1: it follows the channels, but not their scale.
        self.conv(f"{name}.{expand}", getattr(layer, expand), reads=inner, writes=channels, normed=True)

    def _width(self, channels: Channels) -> int:
        return self.build.spaces[self.build.prefix + channels.space].width()

    def _spread(self, name: str, layer: Any, channels: Channels) -> int:
        # A depthwise convolution may write several channels for each that it reads.
        return self.width(name, layer) // self._width(channels) if self.groups(name, layer) > 1 else channels.spread


def passes_scale(act: nn.Module | None) -> bool:
    """Whether ``act(s x) = s act(x)`` for every s > 0."""
    return isinstance(act, _HOMOGENEOUS) and not isinstance(act, nn.ReLU6)


def _short(module: object) -> str:
    if isinstance(module, nn.Conv2d):
        return f"a {type(module).__name__} with {module.groups} groups"
    return f"a {type(module).__name__}"

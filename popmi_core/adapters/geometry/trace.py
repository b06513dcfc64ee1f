"""What a backbone does to the grid: every convolution, pooling, padding and window, in the order in which they run.

Found by running it once on tensors without values (``meta``: shapes only, next to no time or memory).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from popmi_core.errors import ModelError

Kind = Literal["convolution", "pooling", "padding", "transposed", "resizing", "window", "rotary"]
FEATURES = ""
"""The name of the only stage of a backbone that is not divided: all of ``forward_features``."""
_aten = torch.ops.aten
# What a backbone may raise when a size does not fit it, or an operation has no version without values.
MISFIT = (RuntimeError, AssertionError, ValueError, IndexError, TypeError, NotImplementedError, ZeroDivisionError)


@dataclass(frozen=True)
class Axis:
    """One axis of one step: ``size`` cells in, ``out`` cells out, windows of ``reach`` cells every ``stride`` cells.

    ``before`` and ``after`` count cells of padding; ``reach`` counts dilation in.
    """

    size: int
    out: int
    reach: int = 1
    stride: int = 1
    before: int = 0
    after: int = 0

    @property
    def off_centre(self) -> float:
        """Return how far the middle of the sampled cells lies from the middle of the grid, in cells of the input."""
        middle = -self.before + (self.reach - 1) / 2 + self.stride * (self.out - 1) / 2
        return middle - (self.size - 1) / 2


@dataclass(frozen=True)
class Step:
    """One operation that sees places: the module that ran it, what it is, and both axes of the grid."""

    module: str
    kind: Kind
    rows: Axis
    columns: Axis


@dataclass
class Trace:
    """All steps of one forward pass; ``ends[i]`` steps had run when stage ``i`` was done, on a grid of ``sides[i]``.

    A side is None where a stage gives no square map. ``problem`` says why the backbone does not run at this size.
    """

    steps: list[Step] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    sides: list[int | None] = field(default_factory=list)
    problem: str = ""


def stages_of(backbone: nn.Module) -> list[str]:
    """Return the names of what the merge block counts: a ViT's blocks, the stages of other families.

    ``FEATURES`` alone where a backbone has neither: its last map is then the only place to merge.

    Raises:
        ModelError: If the model is no backbone of timm's kind.
    """
    for name in ("blocks", "stages", "layers"):
        stages = getattr(backbone, name, None)
        if isinstance(stages, nn.Sequential | nn.ModuleList):
            return [f"{name}.{child}" for child, _ in stages.named_children()]
    layers = [name for name, _ in backbone.named_children() if name.startswith("layer")]
    if layers or hasattr(backbone, "forward_features"):
        return layers or [FEATURES]
    raise ModelError(
        f"{type(backbone).__name__} has neither blocks nor stages nor forward_features, expected a timm backbone such "
        "as a ViT, Swin, ConvNeXt, ResNet or EfficientNet. Choose another backbone."
    )


def trace(backbone: nn.Module, image_size: int, *, enough: Callable[[Trace], bool] | None = None) -> Trace:
    """Run ``backbone`` once on a blank image of ``image_size`` pixels per side and return what it did to the grid.

    ``enough``: asked after every step; where it says yes the rest is not run, and that is the ``problem``.
    """
    found = Trace()
    try:
        _run(emptied(backbone, image_size), image_size, found, "meta", enough)
    except _Enough:
        found.problem = "stopped before its end"
    except MISFIT as error:
        # Some forward passes look at values; those run on the processor instead.
        if "meta" not in str(error).lower() and not isinstance(error, NotImplementedError):
            found.problem = _misfit(image_size, error)
            return found
        found = Trace()
        try:
            _run(resized(copy.deepcopy(backbone), image_size), image_size, found, "cpu", None)
        except MISFIT as error:
            found.problem = _misfit(image_size, error)
    return found


@contextmanager
def after_stage(backbone: Any, name: str, change: Callable[[Any], Any]) -> Iterator[None]:
    """Pass what a stage gives (``FEATURES``: what ``forward_features`` gives) through ``change`` for a while."""
    if name != FEATURES:
        handle = backbone.get_submodule(name).register_forward_hook(lambda module, args, output: change(output))
        try:
            yield
        finally:
            handle.remove()
        return
    original = backbone.forward_features
    backbone.forward_features = lambda *args, **kwargs: change(original(*args, **kwargs))
    try:
        yield
    finally:
        del backbone.forward_features


def emptied(backbone: nn.Module, image_size: int) -> nn.Module:
    """Return a copy without values, made for ``image_size``."""
    memo: dict[int, Any] = {}
    for tensor in (*backbone.parameters(), *backbone.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
    return resized(copy.deepcopy(backbone, memo), image_size)


def resized(backbone: Any, image_size: int) -> nn.Module:
    """Make the backbone take ``image_size`` in place, by timm's own means; windows stay as large as they are asked."""
    embed = getattr(backbone, "patch_embed", None)
    own = getattr(embed, "img_size", None)
    if own is None or tuple(own) == (image_size, image_size) or not hasattr(backbone, "set_input_size"):
        return backbone.eval()
    windows = getattr(backbone, "_ref_window_sizes", None)
    wanted = {} if windows is None else {"window_size": windows}
    backbone.set_input_size(img_size=(image_size, image_size), **wanted)
    return backbone.eval()


def channels_of(backbone: Any) -> int:
    """Return how many channels an image has for this backbone."""
    first = next((m for m in backbone.modules() if isinstance(m, nn.Conv2d)), None)
    return int(getattr(backbone, "in_chans", None) or (first.in_channels if first is not None else 3))


def grid_axes(backbone: Any) -> tuple[int, int]:
    """Return which axes of a four-dimensional map are rows and columns: channels come last in some families."""
    return (1, 2) if getattr(backbone, "output_fmt", "NCHW") == "NHWC" else (2, 3)


def side_of(backbone: Any, output: Any) -> int | None:
    """Return the side of the square map in a stage's output: tokens [n, t, d], [n, c, s, s] or [n, s, s, c]."""
    if not isinstance(output, Tensor):
        return None
    if output.ndim == 3:
        cells = output.shape[1] - int(getattr(backbone, "num_prefix_tokens", 0))
        side = round(max(cells, 0) ** 0.5)
        return side if side * side == cells and side else None
    rows, columns = grid_axes(backbone)
    square = output.ndim == 4 and output.shape[rows] == output.shape[columns]
    return int(output.shape[rows]) if square else None


def _run(model: Any, image_size: int, found: Trace, device: str, enough: Callable[[Trace], bool] | None) -> None:
    inside: list[str] = []

    def note(output: Any) -> Any:
        found.ends.append(len(found.steps))
        found.sides.append(side_of(model, output))
        return output

    like = next(model.parameters())
    image = torch.zeros(1, channels_of(model), image_size, image_size, device=device, dtype=like.dtype)
    with ExitStack() as stack:
        for name, module in model.named_modules():
            before = module.register_forward_pre_hook(_entering(name, inside, found), with_kwargs=True)
            stack.callback(before.remove)
            stack.callback(module.register_forward_hook(_leaving(inside)).remove)
        for name in stages_of(model):
            stack.enter_context(after_stage(model, name, note))
        with torch.no_grad(), _Watching(inside, found, enough):
            model(image)


def _entering(name: str, inside: list[str], found: Trace) -> Callable[..., None]:
    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inside.append(name)
        if args and isinstance(args[0], Tensor):
            found.steps.extend(_told_by(name, module, args[0], kwargs))

    return hook


def _leaving(inside: list[str]) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        inside.pop()

    return hook


def _told_by(name: str, module: Any, tokens: Tensor, kwargs: dict[str, Any]) -> list[Step]:
    """Return what only the module itself knows: shifted windows (Swin), rotary positions handed along."""
    shift, window = getattr(module, "shift_size", None), getattr(module, "window_size", None)
    if isinstance(kwargs.get("rope"), Tensor):
        # The block hands its angles to the attention inside, which is named.
        attends = hasattr(module, "qkv") or hasattr(module, "q_proj")
        return [Step(name, "rotary", Axis(1, 1), Axis(1, 1))] if attends else []
    if not (isinstance(shift, tuple) and isinstance(window, tuple) and any(shift) and tokens.ndim == 4):
        return []
    # A window grid shifted by s begins at s modulo w; seen from the other end it begins at -s.
    axes = [
        Axis(n, n, reach=w, stride=w, before=-s % w, after=s % w)
        for n, w, s in zip(tokens.shape[1:3], window, shift, strict=True)
    ]
    return [Step(name, "window", *axes)]


class _Enough(Exception):
    """What was to be found out is known."""


class _Watching(TorchDispatchMode):
    """Notes every operation that sees neighbours, with the module it runs in."""

    def __init__(self, inside: list[str], found: Trace, enough: Callable[[Trace], bool] | None) -> None:
        super().__init__()
        self.inside, self.found, self.enough = inside, found, enough

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        reader = _READERS.get(func.overloadpacket)
        axes = None if reader is None else reader(args, kwargs or {}, output)
        if axes is not None:
            kind, rows, columns = axes
            self.found.steps.append(Step(self.inside[-1] if self.inside else "", kind, rows, columns))
            if self.enough is not None and self.enough(self.found):
                raise _Enough
        return output


Read = tuple[Kind, Axis, Axis] | None


def _two(value: Any, default: int) -> tuple[int, int]:
    listed = list(value) if isinstance(value, list | tuple) else [value]
    listed = listed or [default]
    return (listed[0], listed[-1])


def _convolution(args: Any, kwargs: Any, output: Tensor) -> Read:
    del kwargs
    inputs, weight, _, stride, padding, dilation, transposed = args[:7]
    if inputs.ndim != 4:
        return None
    axes = []
    for dim in (0, 1):
        n, m = inputs.shape[2 + dim], output.shape[2 + dim]
        reach = (weight.shape[2 + dim] - 1) * _two(dilation, 1)[dim] + 1
        step, pad = _two(stride, 1)[dim], _two(padding, 0)[dim]
        # A transposed convolution is the same step the other way round.
        axes.append(Axis(m, n, reach, step, pad, pad) if transposed else Axis(n, m, reach, step, pad, pad))
    return ("transposed" if transposed else "convolution"), axes[0], axes[1]


def _pooling(args: Any, kwargs: Any, output: Any) -> Read:
    del kwargs
    inputs, kernel = args[0], args[1]
    result = output[0] if isinstance(output, tuple) else output
    stride = args[2] if len(args) > 2 and args[2] else kernel
    padding = args[3] if len(args) > 3 else 0
    if inputs.ndim != 4:
        return None
    axes = []
    for dim in (0, 1):
        pad = _two(padding, 0)[dim]
        n, m = inputs.shape[2 + dim], result.shape[2 + dim]
        axes.append(Axis(n, m, _two(kernel, 1)[dim], _two(stride, 1)[dim], pad, pad))
    return "pooling", axes[0], axes[1]


def _padding(args: Any, kwargs: Any, output: Tensor) -> Read:
    del kwargs
    inputs, pads = args[0], list(args[1])
    pairs = list(zip(pads[::2], pads[1::2], strict=True))
    touched = [dim for dim, pair in enumerate(pairs) if any(pair)]
    # One axis alone is channels or tokens; a grid is padded along both of its axes.
    if inputs.ndim != 4 or len(touched) < 2:
        return None
    axes = []
    for dim in touched[:2]:
        before, after = pairs[dim]
        axes.append(Axis(inputs.shape[-1 - dim], output.shape[-1 - dim], before=before, after=after))
    return "padding", axes[1], axes[0]


def _resizing(args: Any, kwargs: Any, output: Tensor) -> Read:
    del kwargs
    inputs = args[0]
    if inputs.ndim != 4:
        return None
    axes = [Axis(inputs.shape[2 + dim], output.shape[2 + dim]) for dim in (0, 1)]
    return "resizing", axes[0], axes[1]


_READERS: dict[Any, Callable[[Any, Any, Any], Read]] = {
    _aten.convolution: _convolution,
    _aten.max_pool2d_with_indices: _pooling,
    _aten.avg_pool2d: _pooling,
    _aten.constant_pad_nd: _padding,
    _aten.reflection_pad2d: _padding,
    _aten.replication_pad2d: _padding,
    # The others (bilinear, bicubic, nearest-exact) take pixel centres and are even on both sides.
    _aten.upsample_nearest2d: _resizing,
}


def _misfit(image_size: int, error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"it does not run on {image_size}x{image_size} pixels: {lines[0]}"

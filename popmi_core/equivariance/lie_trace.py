"""What one image does in a model: the calls of its modules, with every tensor that goes in and comes out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from popmi_core.equivariance.layouts import Layout, Places


@dataclass(eq=False)
class Call:
    """One run of one module.

    Attributes:
        name: The module's name in the model; empty for the model itself.
        module: The module.
        inside: The call it is part of.
        inputs: Tensors that went in, each a copy of its own, so that its gradient is that of this way only.
        output: What came out.
        parts: Calls directly inside, in order.
    """

    name: str
    module: nn.Module
    inside: Call | None
    inputs: list[tuple[Tensor, Layout]]
    output: tuple[Tensor, Layout] | None = None
    parts: list[Call] = field(default_factory=list)


def trace(model: nn.Module, image: Tensor, places: Places) -> tuple[Tensor, Call]:
    """Return the output for one image (which needs a gradient) and the tree of calls whose tensors have a place.

    Modules whose tensors are no maps of the image are left out; what they do counts to the module around them.
    """
    root = Call("", model, None, [])
    recorder = _Recorder(root, places)
    with ExitStack() as stack:
        stack.enter_context(_not_in_place(model))
        for name, module in _watched(model):
            stack.enter_context(recorder.watch(name, module))
        given = image.clone()
        root.inputs = [(given, "channels first")]
        output: Tensor = model(given)
    root.output = (output, "no place")
    return output, root


class _Recorder:
    """Keeps the tree of calls while the model runs."""

    def __init__(self, root: Call, places: Places) -> None:
        self._now: Call | None = root
        self._places = places
        self._skipped: list[bool] = []

    @contextmanager
    def watch(self, name: str, module: nn.Module) -> Iterator[None]:
        before = module.register_forward_pre_hook(lambda _, arguments: self._enter(name, module, arguments))
        after = module.register_forward_hook(lambda _, __, output: self._leave(output))
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _enter(self, name: str, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        call, passed = Call(name, module, self._now, []), []
        for value in arguments:
            if isinstance(value, Tensor) and value.is_floating_point() and value.requires_grad:
                layout = self._places.layout(value, module)
                if layout is None:
                    self._skipped.append(True)
                    return arguments
                value = value.clone()
                call.inputs.append((value, layout))
                # Given on as one more copy: the module may write into it.
                value = value.clone()
            passed.append(value)
        self._skipped.append(False)
        self._now = call
        return tuple(passed)

    def _leave(self, output: Any) -> Any:
        if self._skipped.pop():
            return output
        call = self._now
        assert call is not None
        assert call.inside is not None
        self._now = call.inside
        layout = self._places.layout(output, call.module) if isinstance(output, Tensor) else None
        if layout is None or not call.inputs or not output.requires_grad:
            # Its parts stay what they are; the rest of it belongs to the call around it.
            call.inside.parts += call.parts
            return output
        call.output = (output, layout)
        call.inside.parts.append(call)
        return output.clone()


def _watched(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules whose tensors are looked at: all but what works on windows or heads inside attention."""
    hidden: list[str] = []
    for name, module in model.named_modules():
        if "Attention" in type(module).__name__:
            windows = getattr(module, "window_size", None) is not None
            hidden += [name] if windows else []
            hidden += [f"{name}.{child}" for child, _ in module.named_children() if windows or child not in _TOKENWISE]
    return [
        (name, module)
        for name, module in model.named_modules()
        if name and not any(name == top or name.startswith(f"{top}.") for top in hidden)
    ]


_TOKENWISE = ("qkv", "q", "k", "v", "kv", "proj", "proj_drop")


@contextmanager
def _not_in_place(model: nn.Module) -> Iterator[None]:
    """Let activations make new tensors: what was recorded must stay what it was."""
    changed: list[Any] = [module for module in model.modules() if getattr(module, "inplace", None) is True]
    for module in changed:
        module.inplace = False
    try:
        yield
    finally:
        for module in changed:
            module.inplace = True

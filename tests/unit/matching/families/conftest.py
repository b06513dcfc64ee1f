"""What every description is asked: does each axis matter, do taps show the spaces, does a spelling fit."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from popmi_core.matching.canonical import canonicalise
from popmi_core.matching.check import input_shape, perturbed
from popmi_core.matching.elements import act, apply, random_element
from popmi_core.matching.symmetry import Axis, Symmetry


def _state(model: nn.Module, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: perturbed(name, tensor.double(), generator) for name, tensor in model.state_dict().items()}


def _images(model: nn.Module) -> Tensor:
    return torch.randn(2, *input_shape(model), generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def _run(model: nn.Module, state: dict[str, Tensor]) -> Tensor:
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        return model(_images(model))


@pytest.fixture
def respelled() -> Callable[..., float]:
    """Relative change of the outputs when a moved model is written in another model's spelling.

    ``small``: every fifth gamma of the model is that small.
    """

    def measure(model: nn.Module, symmetry: Symmetry, small: float | None = None) -> float:
        model = model.double().eval()
        state, other = _state(model, 0), _state(model, 1)
        for name in state if small is not None else ():
            if "norm" in name and name.endswith("weight"):
                state[name][::5] = small
        element = random_element(symmetry, torch.Generator().manual_seed(2))
        moved = apply(state, symmetry, element, like=other)
        before = _run(model, state)
        return float((_run(model, moved) - before).norm() / before.norm())

    return measure


@pytest.fixture
def idle_axes() -> Callable[[nn.Module, Symmetry], list[Axis]]:
    """Axes that a description could leave out and still keep the function."""

    def search(model: nn.Module, symmetry: Symmetry) -> list[Axis]:
        model = model.double().eval()
        state = canonicalise(_state(model, 0), symmetry)
        before, element = _run(model, state), random_element(symmetry, torch.Generator().manual_seed(2))
        idle = []
        for axis in symmetry.axes:
            broken = replace(symmetry, axes=tuple(other for other in symmetry.of(axis.space) if other != axis))
            after = _run(model, act(state, broken, element))
            if (after - before).norm() <= 1e-10 * before.norm():
                idle.append(axis)
        return idle

    return search


@pytest.fixture
def tap_errors() -> Callable[[nn.Module, Symmetry], dict[str, float]]:
    """Relative distance, by space, between what taps read from a moved model and the moved readings."""

    def measure(model: nn.Module, symmetry: Symmetry) -> dict[str, float]:
        model = model.double().eval()
        state = canonicalise(_state(model, 0), symmetry)
        element = random_element(symmetry, torch.Generator().manual_seed(2))
        before, after = _readings(model, state, symmetry), _readings(model, act(state, symmetry, element), symmetry)
        errors: dict[str, float] = {}
        for index, tap in enumerate(symmetry.taps):
            axis = Axis("reading", tap.axis, tap.space, tap.part, start=tap.start, stop=tap.stop, spread=tap.spread)
            only = replace(symmetry, axes=(axis,))
            for old, new in zip(before[index], after[index], strict=True):
                expected = act({"reading": old}, only, element)["reading"]
                # Channels outside the slice belong to another space.
                got, want = (x.movedim(tap.axis, 0)[tap.start : tap.stop] for x in (new, expected))
                errors[tap.space] = max(errors.get(tap.space, 0.0), float((got - want).norm() / want.norm()))
        return errors

    return measure


def _readings(model: nn.Module, state: dict[str, Tensor], symmetry: Symmetry) -> dict[int, list[Tensor]]:
    readings: dict[int, list[Tensor]] = {index: [] for index in range(len(symmetry.taps))}
    handles = []
    for index, tap in enumerate(symmetry.taps):

        def keep(_module, inputs, output, index=index, side=tap.side):
            readings[index].append((inputs[0] if side == "input" else output).detach().clone())

        handles.append(model.get_submodule(tap.module).register_forward_hook(keep))
    _run(model, state)
    for handle in handles:
        handle.remove()
    assert all(readings.values()), "a tap's module never ran"
    return readings

"""The straight line between two states: the model on it, its loss and accuracy, and what its layers say.

States are run through one model without loading them, so nothing is changed and nothing has to be put back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from popmi_core.data import ImageSet
from popmi_core.errors import ModelError
from popmi_core.metrics.connectivity import LinePath
from popmi_core.models import normalise

State = Mapping[str, Tensor]
Images = UInt8[npt.NDArray[np.uint8], "n height width 3"]
POINTS = 25
_BATCH = 256
_BLOCK = re.compile(r"(^|\.)(blocks|layer\d)\.\d+$")


def on_line(first: State, second: State, alpha: float) -> dict[str, Tensor]:
    """Return ``(1 - alpha) first + alpha second`` (float64 sums, in ``first``'s number formats).

    The ends are bit for bit the states that came in. Counters (whole numbers) are rounded.

    Raises:
        ModelError: If the names or shapes of the two differ.
    """
    check_alike(first, second)
    if alpha in (0.0, 1.0):
        return {name: tensor.clone() for name, tensor in (second if alpha else first).items()}
    return {name: _between(tensor, second[name], alpha) for name, tensor in first.items()}


def distance(first: State, second: State) -> float:
    """Return the Frobenius distance of two states over their floating-point tensors.

    Raises:
        ModelError: If the names or shapes of the two differ.
    """
    check_alike(first, second)
    gaps = [(first[n].double() - second[n].double()).square().sum() for n in first if first[n].is_floating_point()]
    return float(torch.stack(gaps).sum().sqrt())


def walk(
    model: nn.Module,
    first: State,
    second: State,
    data: ImageSet,
    *,
    points: int = POINTS,
    progress: Callable[[int, int], None] | None = None,
) -> LinePath:
    """Return loss and accuracy on ``data`` at ``points`` places of the line, both ends included.

    BatchNorm statistics are interpolated like weights, which costs such models more than their basis does.

    Raises:
        ModelError: If the states do not fit one another or the model, or there is no image.
        UpdateError: If a loss on the line is NaN or infinite (when the barrier is asked for).
    """
    scores = []
    for index, alpha in enumerate(np.linspace(0.0, 1.0, points)):
        scores.append(evaluate(model, on_line(first, second, float(alpha)), data))
        if progress is not None:
            progress(index + 1, points)
    return LinePath(tuple(loss for loss, _ in scores), tuple(accuracy for _, accuracy in scores))


def evaluate(model: nn.Module, state: State, data: ImageSet) -> tuple[float, float]:
    """Return mean cross-entropy (nats) and accuracy (0..1) of the model under ``state``.

    Raises:
        ModelError: If the state does not fit the model, or there is no image.
    """
    if not len(data):
        raise ModelError("there is no image to evaluate on, expected at least one. Choose another split.")
    loss, hits = 0.0, 0
    with torch.inference_mode():
        for images, targets in _batches(model, data):
            logits = run(model, state, images).double()
            loss += float(functional.cross_entropy(logits, targets, reduction="sum"))
            hits += int((logits.argmax(1) == targets).sum())
    return loss / len(data), hits / len(data)


def gradient_norm(model: nn.Module, state: State, data: ImageSet) -> float:
    """Return the Frobenius norm of the gradient of the mean cross-entropy with respect to all weights.

    Raises:
        ModelError: If the state does not fit the model, or there is no image.
    """
    if not len(data):
        raise ModelError("there is no image to take a gradient on, expected at least one. Choose another split.")
    trained = {name for name, _ in model.named_parameters()}
    weights = {n: t.detach().clone().requires_grad_(n in trained and t.is_floating_point()) for n, t in state.items()}
    leaves = [tensor for tensor in weights.values() if tensor.requires_grad]
    total = [torch.zeros_like(leaf, dtype=torch.float64) for leaf in leaves]
    for images, targets in _batches(model, data):
        loss = functional.cross_entropy(run(model, weights, images), targets, reduction="sum")
        for part, gradient in zip(total, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True):
            if gradient is not None:
                part += gradient.double()
    return float(torch.stack([part.square().sum() for part in total]).sum().sqrt()) / len(data)


def blocks_of(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the model's blocks in order; its children with weights where it has no blocks."""
    head = _classifier(model)
    named = [name for name, _ in model.named_modules() if _BLOCK.search(name)]
    # Stages of stages (EfficientNet's ``blocks.2``) hold blocks of their own: keep the outer ones.
    outer = [name for name in named if not any(name.startswith(f"{other}.") for other in named)]
    children = [
        name for name, child in model.named_children() if child is not head and any(True for _ in child.parameters())
    ]
    return tuple(outer or children)


def kernels(
    model: nn.Module, state: State, images: Images, layers: Sequence[str]
) -> dict[str, Float64[npt.NDArray[np.float64], "n n"]]:
    """Return ``X X^T`` of every layer's output, X being one flat row an image (all tokens or places, all channels).

    All images go through in one batch: memory grows with them. A few hundred are enough for CKA.

    Raises:
        ModelError: If the state does not fit the model or a layer is not there.
    """
    found: dict[str, Float64[npt.NDArray[np.float64], "n n"]] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            del module, inputs
            rows = (output if isinstance(output, Tensor) else output[0]).flatten(1).double()
            found[name] = (rows @ rows.T).numpy()

        return hook

    modules = dict(model.named_modules())
    unknown = [name for name in layers if name not in modules]
    if unknown:
        raise ModelError(f"the model has no layer {unknown[0]!r}, expected one of {', '.join(blocks_of(model))}.")
    handles = [modules[name].register_forward_hook(keep(name)) for name in layers]
    try:
        with torch.inference_mode():
            run(model, state, normalise(torch.from_numpy(images), model))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _classifier(model: nn.Module) -> Any:
    """Return timm's classifier; of a distilled model's two, which read different tokens, the class token's."""
    found = getattr(model, "get_classifier", lambda: None)()
    return found[0] if isinstance(found, tuple) else found


def features(model: nn.Module, state: State, images: Images) -> Float64[npt.NDArray[np.float64], "n dim"]:
    """Return what the classifier reads, one row an image.

    Raises:
        ModelError: If the state does not fit the model, or the model has no classifier.
    """
    head = _classifier(model)
    if not isinstance(head, nn.Module) or isinstance(head, nn.Identity):
        raise ModelError(
            f"{type(model).__name__} has no classifier whose input could be read. Use a model with a head."
        )
    rows: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0].flatten(1).double()))
    try:
        with torch.inference_mode():
            for start in range(0, len(images), _BATCH):
                run(model, state, normalise(torch.from_numpy(images[start : start + _BATCH]), model))
    finally:
        handle.remove()
    return torch.cat(rows).numpy()


def run(model: nn.Module, state: State, images: Tensor) -> Tensor:
    """Return the logits ``[n, classes]`` of normalised images under ``state``; the model's own weights stay.

    Raises:
        ModelError: If the state lacks a weight of the model, or has one that the model has not.
    """
    own = model.state_dict()
    # Counters such as num_batches_tracked do not travel and do not act.
    missing = sorted(name for name in set(own) - set(state) if own[name].is_floating_point())
    unknown = sorted(set(state) - set(own))
    if missing or unknown:
        problem = f"{missing[0]!r} is missing" if missing else f"{unknown[0]!r} is unknown to it"
        raise ModelError(f"the state does not fit the model: {problem}. Check the model's name and arguments.")
    # Files may hold half or double precision: the images follow the weights.
    like = next(tensor for tensor in state.values() if tensor.is_floating_point())
    return torch.as_tensor(functional_call(model.eval(), dict(state), (images.to(like),)))


def check_alike(first: State, second: State) -> None:
    """Refuse two states that are not of one architecture.

    Raises:
        ModelError: If a name is in one of them only, or has another shape.
    """
    apart = sorted(set(first) ^ set(second))
    if apart:
        raise ModelError(f"the two states differ: {apart[0]!r} is in one only. Compare models of one architecture.")
    for name, tensor in first.items():
        if tensor.shape != second[name].shape:
            raise ModelError(
                f"the two states differ: {name!r} has shape {tuple(tensor.shape)} in one and "
                f"{tuple(second[name].shape)} in the other. Compare models of one architecture."
            )


def _between(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    mixed = (1 - alpha) * first.double() + alpha * second.double()
    return mixed.to(first.dtype) if first.is_floating_point() else mixed.round().to(first.dtype)


def _batches(model: nn.Module, data: ImageSet) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(data), _BATCH):
        part = slice(start, start + _BATCH)
        yield normalise(torch.from_numpy(data.images[part]), model), torch.from_numpy(data.targets[part])


def line_judge(
    model: nn.Module,
    first: State,
    second: State,
    images: Float[Tensor, "n channels height width"],
    *,
    share: float = 0.5,
) -> Callable[[State], float]:
    """Return a judge of moved copies of ``second``: how far the line to ``first`` is from what both ends say (nats).

    That is the cross-entropy of the model at ``share`` of the second to the ends' probabilities, averaged by the same
    shares; it needs no classes.
    """

    @cache
    def wanted() -> Tensor:
        # Asked for when there is something to judge: between kin there is not.
        ends = [torch.softmax(run(model, end, images), 1) for end in (first, second)]
        return torch.lerp(ends[0], ends[1], share)

    def judge(moved: State) -> float:
        with torch.inference_mode():
            said = torch.log_softmax(run(model, on_line(first, moved, share), images), 1)
            return -float((wanted() * said).sum(1).mean())

    return judge

"""Norm statistics after fusing: BatchNorm of an average needs its own (Jordan et al. 2023, REPAIR, arXiv:2211.08403).

Averaged weights make activations of smaller variance than either parent's; the averaged running statistics do not
know. Each site runs its images through the fused model and sends sums only; the server pools them. Layers without
running statistics (LayerNorm, GroupNorm) measure every image by themselves and need nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from popmi_core.errors import DataError, UpdateError
from popmi_core.fusion.update import State

_PARTS = ("mean", "var", "count")


def norm_statistics(
    model: nn.Module, images: Float[Tensor, "n channels height width"], *, batch_size: int = 64
) -> dict[str, Tensor]:
    """Return what every BatchNorm layer sees, as ``<layer>.mean``, ``.var`` (population) and ``.count`` (positions).

    One pass in which BatchNorm uses the batch's own statistics, as in training, and everything else is in evaluation
    mode. Sums are float64 over all batches; below the first BatchNorm layer the result depends on the batch size
    (batches of equal size, as large as memory allows), because what a layer sees is normed by batch. The model runs on
    its own device and is left as it was.

    Args:
        model: Any model; without BatchNorm the result is empty.
        images: Ready for the model (normalised), on any device.
        batch_size: Images per forward pass, at most.

    Raises:
        DataError: If there are fewer than two images.
    """
    if len(images) < 2:
        raise DataError(
            f"norm_statistics: got {len(images)} images, expected at least 2. Give the site a training split."
        )
    norms = {name: module for name, module in model.named_modules() if _keeps_statistics(module)}
    if not norms:
        return {}
    sums: dict[str, Tensor] = {}
    handles = [_listen(name, module, sums) for name, module in norms.items()]
    weight = next(model.parameters())
    try:
        with torch.no_grad(), _batch_statistics(model, list(norms.values())):
            # Equal parts: a last batch of one image has no variance.
            for batch in images.tensor_split(min(math.ceil(len(images) / max(batch_size, 2)), len(images) // 2)):
                model(batch.to(weight))
    finally:
        for handle in handles:
            handle.remove()
    return {name: tensor for layer, found in sums.items() for name, tensor in _moments(layer, found).items()}


def pool_norm_statistics(
    statistics: Sequence[Mapping[str, Tensor]], *, shares: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Return the sites' statistics as those of all their images: the law of total variance.

    ``mean = sum_k w_k mean_k`` and ``var = sum_k w_k (var_k + (mean_k - mean)^2)``. The weights w are the counts'
    shares, or ``shares`` where sites measured on samples of their images.

    Raises:
        UpdateError: If there is none, layers or shapes differ, a value is not finite, a variance is negative, or no
            count or share is above 0.
    """
    if not statistics or (shares is not None and len(shares) != len(statistics)):
        raise UpdateError(
            f"norm statistics: {len(statistics)} answers and {len(shares or ())} shares, expected at least one answer "
            "and one share for each. Ask the sites again."
        )
    for index, found in enumerate(statistics):
        _check(found, statistics[0], index)
    pooled = {}
    for layer in _layers(statistics[0]):
        counts = torch.stack([found[f"{layer}.count"].double() for found in statistics])
        weights = counts if shares is None else torch.tensor(shares, dtype=torch.float64)
        if bool((weights < 0).any()) or float(weights.sum()) <= 0:
            raise UpdateError(f"norm statistics: '{layer}' has weights {weights.tolist()}, expected one above 0.")
        weights = (weights / weights.sum())[:, None]
        means = torch.stack([found[f"{layer}.mean"].double() for found in statistics])
        spreads = torch.stack([found[f"{layer}.var"].double() for found in statistics])
        mean = (weights * means).sum(dim=0)
        pooled[f"{layer}.mean"] = mean
        pooled[f"{layer}.var"] = (weights * (spreads + (means - mean).square())).sum(dim=0)
        pooled[f"{layer}.count"] = counts.sum()
    return pooled


def with_norm_statistics(state: State, pooled: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state with these running statistics (variance as PyTorch keeps it: unbiased); the rest is shared.

    Raises:
        UpdateError: If a layer is not in the state or has another width.
    """
    result = dict(state)
    for layer in _layers(pooled):
        count = float(pooled[f"{layer}.count"])
        unbiased = pooled[f"{layer}.var"].double() * (count / max(count - 1, 1))
        for part, value in (("running_mean", pooled[f"{layer}.mean"]), ("running_var", unbiased)):
            name = f"{layer}.{part}"
            if name not in state or state[name].shape != value.shape:
                got = tuple(state[name].shape) if name in state else "no such tensor"
                raise UpdateError(
                    f"norm statistics: the model has {got} at '{name}', expected {tuple(value.shape)}. "
                    "Measure them on the model they are for."
                )
            result[name] = value.to(state[name].dtype)
    return result


def _keeps_statistics(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def _listen(name: str, module: Any, sums: dict[str, Tensor]) -> RemovableHandle:
    # As many rows as there are statistics: between regular fields all channels of a field share one.
    kept = len(module.running_mean)

    def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].double().transpose(0, 1).reshape(kept, -1)
        # Moments around each batch's mean and then pooled: squares of large means would cancel.
        batch = torch.stack(
            [rows.mean(dim=1), rows.var(dim=1, correction=0), torch.full_like(rows[:, 0], rows.shape[1])]
        )
        sums[name] = _joined(sums[name], batch) if name in sums else batch

    return module.register_forward_pre_hook(add)


def _joined(first: Float[Tensor, "3 channels"], second: Float[Tensor, "3 channels"]) -> Float[Tensor, "3 channels"]:
    count = first[2] + second[2]
    step = second[0] - first[0]
    share = second[2] / count
    spread = first[1] + share * (second[1] - first[1]) + share * (1 - share) * step.square()
    return torch.stack([first[0] + share * step, spread, count])


def _moments(layer: str, found: Float[Tensor, "3 channels"]) -> dict[str, Tensor]:
    mean, var, count = found.cpu()
    return {f"{layer}.mean": mean.clone(), f"{layer}.var": var.clone(), f"{layer}.count": count[0].clone()}


@contextmanager
def _batch_statistics(model: nn.Module, norms: Sequence[nn.Module]) -> Iterator[None]:
    """Evaluation mode, with BatchNorm norming by batch and keeping nothing; put back on leaving."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    for norm in norms:
        norm.training, norm.track_running_stats = True, False  # type: ignore[assignment]
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True  # type: ignore[assignment]
        for module, mode in training.items():
            module.training = mode


def _layers(statistics: Mapping[str, Tensor]) -> list[str]:
    return [name.removesuffix(".mean") for name in statistics if name.endswith(".mean")]


def _check(found: Mapping[str, Tensor], first: Mapping[str, Tensor], index: int) -> None:
    wanted = {f"{layer}.{part}" for layer in _layers(first) for part in _PARTS}
    if set(found) != wanted:
        name = min(set(found) ^ wanted)
        raise UpdateError(f"norm statistics: '{name}' is not in all sites' answers. Check the model's configuration.")
    for name, tensor in found.items():
        bad = name.endswith((".var", ".count")) and bool((tensor < 0).any())
        if tensor.shape != first[name].shape or bad or not bool(torch.isfinite(tensor).all()):
            raise UpdateError(
                f"norm statistics: answer {index} has at '{name}' a tensor of shape {tuple(tensor.shape)}, expected "
                f"{tuple(first[name].shape)} and finite, variances and counts not negative. Ask the site again."
            )

"""The step the server takes along the fused pseudo-gradient (Reddi et al. 2021, arXiv:2003.00295)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from popmi_core.config import ServerOptimizerConfig
from popmi_core.errors import UpdateError
from popmi_core.fusion.update import State, cast

# An adaptive step could make a variance negative: BatchNorm statistics are taken from the fused model as they are.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class ServerOptimizer:
    """FedAvgM, FedAdam or FedYogi on the pseudo-gradient; its moments are float64 and part of a checkpoint.

    With ``delta = fused - previous``: *momentum* ``m <- beta1 m + delta``, step ``learning_rate m`` (Hsu et al. 2019,
    arXiv:1909.06335); *adam* and *yogi* ``m <- beta1 m + (1 - beta1) delta``, step
    ``learning_rate m / (sqrt(v) + tau)``. *adam* has the bias-corrected learning rate of Flower's FedAdam, which counts
    rounds from two. *none* with learning rate 1 returns the fused model bit for bit.
    """

    def __init__(self, config: ServerOptimizerConfig) -> None:
        self.config = config
        self._round = 0
        self._first: dict[str, Tensor] = {}
        self._second: dict[str, Tensor] = {}

    def step(self, previous: State, fused: State) -> dict[str, Tensor]:
        """Return the next global model; neither argument is changed.

        Raises:
            UpdateError: If the two models differ in names or shapes, or a kept moment has another shape.
        """
        self._check(previous, fused)
        self._round += 1
        if self.config.name == "none" and self.config.learning_rate == 1:
            return {name: tensor.clone() for name, tensor in fused.items()}
        return {name: self._next(name, previous[name], tensor) for name, tensor in fused.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything the next step needs, ready for safetensors."""
        state = {"round": torch.tensor(self._round, dtype=torch.int64)}
        state |= {f"first.{name}": tensor.clone() for name, tensor in self._first.items()}
        state |= {f"second.{name}": tensor.clone() for name, tensor in self._second.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up where ``state_dict`` left off.

        Raises:
            UpdateError: If the state does not come from ``state_dict``.
        """
        first = {name.removeprefix("first."): t.double() for name, t in state.items() if name.startswith("first.")}
        second = {name.removeprefix("second."): t.double() for name, t in state.items() if name.startswith("second.")}
        if "round" not in state or len(first) + len(second) + 1 != len(state):
            raise UpdateError(
                f"server optimiser: the saved state has {len(state)} tensors of which 'round' "
                f"{'is' if 'round' in state else 'is not'} one, expected 'round', 'first.*' and 'second.*'. "
                "Resume from the run's own checkpoint."
            )
        self._round, self._first, self._second = int(state["round"]), first, second

    def _check(self, previous: State, fused: State) -> None:
        if set(previous) != set(fused):
            name = min(set(previous) ^ set(fused))
            raise UpdateError(f"server optimiser: '{name}' is in one model only. Resume with the run's own model.")
        for name, tensor in fused.items():
            kept = self._first.get(name, tensor)
            for other in (previous[name], kept):
                if other.shape != tensor.shape:
                    raise UpdateError(
                        f"server optimiser: '{name}' has shape {tuple(tensor.shape)}, expected {tuple(other.shape)}. "
                        "Resume with the run's own model."
                    )

    def _next(self, name: str, previous: Tensor, fused: Tensor) -> Tensor:
        if not fused.is_floating_point() or name.rpartition(".")[2] in _STATISTICS:
            return fused.clone()
        start = previous.double()
        return cast(start + self._change(name, fused.double() - start), fused)

    def _change(self, name: str, delta: Tensor) -> Tensor:
        config = self.config
        if config.name == "none":
            return config.learning_rate * delta
        zero = torch.zeros_like(delta)
        if config.name == "momentum":
            self._first[name] = config.beta1 * self._first.get(name, zero) + delta
            return config.learning_rate * self._first[name]
        first = config.beta1 * self._first.get(name, zero) + (1 - config.beta1) * delta
        second, square = self._second.get(name, zero), delta.square()
        if config.name == "adam":
            second = config.beta2 * second + (1 - config.beta2) * square
        else:
            second = second - (1 - config.beta2) * square * torch.sign(second - square)
        self._first[name], self._second[name] = first, second
        return self._rate() * first / (second.sqrt() + config.tau)

    def _rate(self) -> float:
        config = self.config
        if config.name != "adam":
            return config.learning_rate
        power = self._round + 1
        return config.learning_rate * math.sqrt(1 - config.beta2**power) / (1 - config.beta1**power)

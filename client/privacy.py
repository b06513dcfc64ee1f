"""The budget of DP-SGD: how much noise, what was spent, and when a site must stop.

The target is for the whole study: every round of every run that ever used the ledger. Accounting is Opacus' Renyi
accountant for the subsampled Gaussian mechanism under Poisson sampling (Mironov et al. 2019, arXiv:1908.10530), two
data sets being neighbours if one has one image more. See docs/privacy.md for what the epsilon does not cover.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from client.ledger import Entry, Ledger, history
from popmi_core.config import LocalConfig, PrivacyConfig
from popmi_core.errors import PrivacyError

History = Sequence[tuple[float, float, int]]
"""Noise multiplier, sample rate and number of steps, oldest first."""

MAX_NOISE = 1000.0
"""An update with more noise than this is noise; the budget counts as spent."""

LEAST_SHARE = 0.01
"""With less than this share of the target left, no new plan is made: the budget counts as spent."""

_STRIDE = math.log(4)
_BEYOND = 100.0


@dataclass(frozen=True)
class Charge:
    """One round's training, already paid for. ``epsilon`` and ``entries`` are the ledger's with this round in it."""

    noise_multiplier: float
    max_grad_norm: float
    sample_rate: float
    steps: int
    epsilon: float
    entries: int = 0


@dataclass(frozen=True)
class PrivateRound:
    """One round of one run against a site's ledger."""

    config: PrivacyConfig
    ledger: Ledger
    run: str
    server_round: int
    rounds: int

    def charge(self, num_examples: int, local: LocalConfig) -> Charge:
        """Pay for a round of training before it begins, and return the noise it must use.

        The noise is chosen once, so that the rounds still planned bring the total to the target, and kept while the
        plan stays the same. A crash after this call leaves the round paid for: repeated, it is paid for twice.

        Raises:
            PrivacyError: If the budget does not allow the round, delta is too large for the number of images, or the
                ledger cannot be trusted. Nothing is spent then.
        """
        self._check_delta(num_examples)
        batches = math.ceil(num_examples / local.batch_size)
        steps, sample_rate = batches * local.epochs, 1 / batches
        with self.ledger.locked():
            entries = self.ledger.entries()
            noise = self._kept_noise(entries, num_examples, local, sample_rate)
            if noise is None:
                noise = self._plan(entries, sample_rate, steps)
            epsilon = spent_epsilon([*history(entries), (noise, sample_rate, steps)], self.config.target_delta)
            if epsilon > self.config.target_epsilon:
                raise self._spent(entries, f"this round would bring it to {epsilon:.4g}")
            self.ledger.append(
                Entry(
                    run=self.run,
                    server_round=self.server_round,
                    rounds=self.rounds,
                    num_examples=num_examples,
                    epochs=local.epochs,
                    steps=steps,
                    sample_rate=sample_rate,
                    noise_multiplier=noise,
                    max_grad_norm=self.config.max_grad_norm,
                    target_epsilon=self.config.target_epsilon,
                    target_delta=self.config.target_delta,
                    epsilon=epsilon,
                )
            )
        return Charge(noise, self.config.max_grad_norm, sample_rate, steps, epsilon, len(entries) + 1)

    def _check_delta(self, num_examples: int) -> None:
        if self.config.target_delta * num_examples >= 1:
            raise PrivacyError(
                f"site {self.ledger.site}: target_delta is {self.config.target_delta:g}, expected less than 1/n = "
                f"{1 / num_examples:.3g} for {num_examples} images; a larger one allows a whole patient to leak. "
                "Lower privacy.target_delta."
            )

    def _kept_noise(
        self, entries: Sequence[Entry], num_examples: int, local: LocalConfig, sample_rate: float
    ) -> float | None:
        # A round repeated after a crash is paid for twice: plan again, so that the last rounds can still be paid.
        if not entries or entries[-1].run != self.run or entries[-1].server_round >= self.server_round:
            return None
        last = entries[-1]
        plan = (self.rounds, num_examples, local.epochs, sample_rate)
        budget = (self.config.target_epsilon, self.config.target_delta)
        same = plan == (last.rounds, last.num_examples, last.epochs, last.sample_rate)
        return last.noise_multiplier if same and budget == (last.target_epsilon, last.target_delta) else None

    def _plan(self, entries: Sequence[Entry], sample_rate: float, steps: int) -> float:
        ahead = max(self.rounds - self.server_round + 1, 1)
        spent = history(entries)
        left = 1 - spent_epsilon(spent, self.config.target_delta) / self.config.target_epsilon
        if left < LEAST_SHARE:
            raise self._spent(entries, f"less than {LEAST_SHARE:.0%} is left for {ahead} more rounds")
        noise = plan_noise(
            spent,
            target_epsilon=self.config.target_epsilon,
            target_delta=self.config.target_delta,
            sample_rate=sample_rate,
            steps=steps * ahead,
        )
        if noise is None:
            raise self._spent(entries, f"{ahead} more rounds would need more noise than {MAX_NOISE:g}")
        return noise

    def _spent(self, entries: Sequence[Entry], why: str) -> PrivacyError:
        spent = spent_epsilon(history(entries), self.config.target_delta)
        return PrivacyError(
            f"site {self.ledger.site}, round {self.server_round}: budget spent: epsilon {spent:.4g} of "
            f"{self.config.target_epsilon:g} is used and {why}. The site stops training; its images can be used again "
            "only under a larger privacy.target_epsilon that the site agrees to."
        )


def spent_epsilon(spent: History, delta: float) -> float:
    """Return the epsilon of everything in ``spent`` together, at ``delta``; 0 for nothing."""
    from opacus.accountants import RDPAccountant  # 1.4 s to import: only a private run pays for it
    from opacus.accountants.analysis.rdp import get_privacy_spent

    if not spent:
        return 0.0
    # Renyi divergences add up over steps, whatever their noise.
    total = sum(steps * _divergence_of_a_step(noise, sample_rate) for noise, sample_rate, steps in spent)
    with warnings.catch_warnings():
        # At the edge of its orders the accountant warns that the bound is loose; it stays a bound.
        warnings.simplefilter("ignore")
        epsilon, _ = get_privacy_spent(orders=RDPAccountant.DEFAULT_ALPHAS, rdp=total, delta=delta)
    return float(epsilon)


@lru_cache(maxsize=256)
def _divergence_of_a_step(noise: float, sample_rate: float) -> npt.NDArray[np.float64]:
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis.rdp import compute_rdp

    orders = RDPAccountant.DEFAULT_ALPHAS
    return np.asarray(compute_rdp(q=sample_rate, noise_multiplier=noise, steps=1, orders=orders))


def plan_noise(
    spent: History, *, target_epsilon: float, target_delta: float, sample_rate: float, steps: int
) -> float | None:
    """Return the least noise multiplier with which ``steps`` more steps keep the total within the target.

    Found by Brent's method to a ten-thousandth, from the safe side; ``None`` if it would exceed ``MAX_NOISE``.
    """

    def excess(log_noise: float) -> float:
        total = spent_epsilon([*spent, (math.exp(log_noise), sample_rate, steps)], target_delta)
        # Infinite for almost no noise, which no root finder can use.
        return min(math.log(total / target_epsilon), _BEYOND)

    high = 0.0
    while excess(high) > 0:
        high += _STRIDE
        if math.exp(high) > MAX_NOISE:
            return None
    low = high - _STRIDE
    while excess(low) <= 0:
        low -= _STRIDE
    root = brentq(excess, low, min(high, low + _STRIDE), xtol=1e-5)
    while excess(root) > 0:
        root += 1e-5
    return math.exp(root)


def check_private(model: nn.Module, local: LocalConfig) -> None:
    """Refuse what would break the promise; call it with the modules in the mode they train in.

    Raises:
        PrivacyError: If a norm mixes the images of a batch, or the objective uses the images beside the gradient.
    """
    for name, module in model.named_modules():
        mixes = isinstance(module, _BatchNorm) or (isinstance(module, _InstanceNorm) and module.track_running_stats)
        if mixes and module.training:
            raise PrivacyError(
                f"'{name}' is a {type(module).__name__}, whose statistics mix the images of a batch and leave the site "
                "without noise. Use a backbone with LayerNorm or GroupNorm such as popmi_vit_nano, or train "
                "adapters only (model.adapter.train or model.lora.train = 'adapter'), which freezes the norms."
            )
    if local.objective == "calibrated":
        raise PrivacyError(
            "the calibrated objective uses the site's class frequencies, which the noise does not cover. "
            "Use local.objective = 'plain' or 'proximal' together with a privacy budget."
        )
    if local.objective == "control_variates":
        raise PrivacyError(
            "a control variate may hold gradients of rounds trained without noise, and the mean of noisy ones is "
            "mostly noise. Use local.objective = 'plain' or 'proximal' together with a privacy budget."
        )

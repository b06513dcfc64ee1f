"""RegMean: every linear layer is the best common answer to the sites' inputs (Jin et al. 2023, arXiv:2212.09849).

For ``y = W x`` at each site i with inputs X_i (rows), the minimiser of ``sum_i share_i |X_i W^T - X_i W_i^T|^2`` is
``W^T = (sum_i share_i G_i)^-1 sum_i share_i G_i W_i^T`` with ``G_i = X_i^T X_i`` per image (equation 2). Convolutions
are linear in their unfolded patches. Sites send Gram matrices, no images: for a layer with d inputs d x d numbers,
which for a ViT is about one and a half times the model itself (an MLP's second layer alone is (4 d)^2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from popmi_core.config import FuseConfig
from popmi_core.errors import UpdateError
from popmi_core.fusion import average
from popmi_core.fusion.grams import input_grams
from popmi_core.fusion.score import Scorer
from popmi_core.fusion.update import Fused, State, Symmetry, Update, cast, in_order

__all__ = ["fuse", "input_grams", "regression_mean"]
# What float32 rounding leaves of symmetry and definiteness in a sum of outer products.
_ROUNDED = 1e-5
# Below this share of its largest pivot a Gram matrix does not determine the solution in float64.
_SMALLEST_PIVOT = 1e-13


def fuse(
    updates: Sequence[Update],
    *,
    reference: State,
    symmetry: Symmetry | None = None,
    config: FuseConfig,
    scorer: Scorer | None = None,
) -> Fused:
    """Solve every layer that has Gram matrices; average biases and everything else plainly, as the paper does.

    ``config.regmean_shrink`` scales the off-diagonals of every G_i (the paper's alpha, equation 4: 0.9). An input
    that is never active at any site says nothing about its column: it is averaged plainly. A lone site's model is
    returned as it is.

    Raises:
        UpdateError: If an update is unfit (see ``in_order``), a site lacks a Gram matrix that another sent, one is not
            symmetric, finite and positive semi-definite, or their sum does not determine the layer.
    """
    ordered = in_order(updates, reference=reference)
    plain = average.fuse(ordered, reference=reference, symmetry=symmetry, config=config)
    if len(ordered) == 1:
        return Fused(plain.state, plain.weights, {"all": "one site only: its model as it is"})
    layers = _layers(ordered, reference)
    state, notes = plain.state, {}
    for layer in layers:
        name = f"{layer}.weight"
        rows = [(plain.weights[u.site], u.grams[layer].double(), u.state[name].double().flatten(1)) for u in ordered]
        solved, idle = regression_mean(rows, shrink=config.regmean_shrink, layer=layer)
        state[name] = cast(solved.reshape(reference[name].shape), reference[name])
        notes[layer] = "RegMean" + (f"; {idle} inputs never active, averaged plainly" if idle else "")
    return Fused(state, plain.weights, notes)


def regression_mean(
    rows: Sequence[tuple[float, Float[Tensor, "fan_in fan_in"], Float[Tensor, "fan_out fan_in"]]],
    *,
    shrink: float,
    layer: str,
) -> tuple[Float[Tensor, "fan_out fan_in"], int]:
    """Return the regression mean of one layer and how many inputs were never active.

    Args:
        rows: Each site's share, Gram matrix (per image) and weight, float64.
        shrink: Scales what the Gram matrices hold off their diagonals, 0 to 1.
        layer: Whom an error names.

    Raises:
        UpdateError: If the sum of the Gram matrices is singular.
    """
    left, right = torch.zeros_like(rows[0][1]), torch.zeros_like(rows[0][2].T)
    mean = torch.zeros_like(rows[0][2])
    for share, gram, weight in rows:
        shrunk = share * (shrink * gram + (1 - shrink) * torch.diag(gram.diagonal()))
        left += shrunk
        right += shrunk @ weight.T
        mean += share * weight
    active = left.diagonal() > 0
    # Inputs are of very different size (LayerNorm's outputs beside a rare unit's): solve with a unit diagonal.
    scale = left.diagonal()[active].sqrt()
    lower, failed = torch.linalg.cholesky_ex(left[active][:, active] / scale / scale[:, None])
    if int(failed) or bool((lower.diagonal().square() < _SMALLEST_PIVOT).any()):
        raise UpdateError(
            f"regmean: the Gram matrices of '{layer}' do not determine its {len(scale)} active inputs (singular). "
            "Lower fuse.regmean_shrink below 1, or compute them on more images."
        )
    solved = mean.clone()
    solved[:, active] = (torch.cholesky_solve(right[active] / scale[:, None], lower) / scale[:, None]).T
    return solved, int((~active).sum())


def _layers(ordered: Sequence[Update], reference: State) -> list[str]:
    """Return the layers to solve: those with Gram matrices whose weight is exchanged; all are checked."""
    named = sorted({layer for update in ordered for layer in update.grams})
    layers = [layer for layer in named if f"{layer}.weight" in reference]
    if not layers:
        raise UpdateError(
            f"regmean: {len(named)} Gram matrices came and none belongs to an exchanged weight, expected one per "
            "linear layer. Have the sites compute them (input_grams), or take rule 'average'."
        )
    for update in ordered:
        for layer in layers:
            if layer not in update.grams:
                raise UpdateError(
                    f"site {update.site}: no Gram matrix of '{layer}', which another site sent. "
                    "Check that the site runs the same model configuration."
                )
            _check(update.grams[layer], reference[f"{layer}.weight"].flatten(1).shape[1], update.site, layer)
    return layers


def _check(gram: Tensor, width: int, site: str, layer: str) -> None:
    who = f"site {site}: the Gram matrix of '{layer}'"
    if gram.shape != (width, width):
        raise UpdateError(f"{who} has shape {tuple(gram.shape)}, expected {(width, width)}. Check the layer's inputs.")
    if not bool(torch.isfinite(gram).all()):
        raise UpdateError(f"{who} holds NaN or infinity. The site's activations overflow: lower its learning rate.")
    wide = gram.double()
    trace = wide.diagonal().sum()
    slack = _ROUNDED * trace
    # Rounding moves eigenvalues by far less than this share of their sum.
    lifted = wide + (slack + torch.finfo(torch.float64).tiny) * torch.eye(width, dtype=torch.float64)
    crooked = bool(((wide - wide.T).abs() > slack).any())
    if crooked or bool((wide.diagonal() < 0).any()) or int(torch.linalg.cholesky_ex(lifted)[1]):
        raise UpdateError(
            f"{who} is not symmetric and positive semi-definite, as sums of x x^T are. Have the site compute it again."
        )

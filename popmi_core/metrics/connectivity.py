"""How far two models are apart: barriers on the line between them, likeness of features and of attention heads.

All in float64 with numpy; what a path's losses or a layer's features are made from is the caller's business.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from popmi_core.errors import UpdateError
from popmi_core.metrics.checks import FloatArray

# The longer the line, the further the sampled maximum may lie below the true one; fewer points cannot show a hill.
FEWEST_POINTS = 3


@dataclass(frozen=True)
class LinePath:
    """Loss and accuracy at equally spaced points of the straight line from one model to another.

    Attributes:
        losses: Mean cross-entropy, nats, ``[points]``; the ends are the two models.
        accuracies: Share of images whose class is hit, 0..1, ``[points]``.
    """

    losses: tuple[float, ...]
    accuracies: tuple[float, ...]

    @property
    def alphas(self) -> FloatArray:
        """Share of the second model at every point, 0 to 1."""
        return np.linspace(0.0, 1.0, len(self.losses))

    @property
    def barrier(self) -> float:
        """Loss barrier, nats (see ``loss_barrier``)."""
        return loss_barrier(self.losses)

    @property
    def accuracy_barrier(self) -> float:
        """Accuracy barrier, 0..1 (see ``accuracy_barrier``)."""
        return accuracy_barrier(self.accuracies)


def loss_barrier(losses: ArrayLike) -> float:
    """Return ``max_alpha L(alpha) - [(1 - alpha) L(0) + alpha L(1)]``, nats, at least 0.

    The definition of Frankle et al. 2020 (arXiv:1912.05671) with the linear reference of Entezari et al. 2022
    (arXiv:2110.06296). The maximum is over the given points only: the true barrier is never smaller.

    Args:
        losses: ``[points]`` at equally spaced places of the line, both ends among them.

    Raises:
        UpdateError: If there are fewer than three points, or a loss is NaN or infinite.
    """
    values = check_path(losses, "losses")
    return float((values - _chord(values)).max())


def accuracy_barrier(accuracies: ArrayLike) -> float:
    """Return ``max_alpha [(1 - alpha) acc(0) + alpha acc(1)] - acc(alpha)``, at least 0; arguments as above.

    Raises:
        UpdateError: If there are fewer than three points, or an accuracy is NaN or infinite.
    """
    values = check_path(accuracies, "accuracies")
    return float((_chord(values) - values).max())


def linear_cka(first: ArrayLike, second: ArrayLike) -> float:
    """Return linear CKA of two layers' features, 0..1 (Kornblith et al. 2019, arXiv:1905.00414, equation 4).

    ``|Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F)`` with centred columns. It does not change under a rotation or scaling of
    either layer, so matching one model to another does not change the CKA between them.

    Args:
        first: Features ``[images, p]``.
        second: Features ``[images, q]`` of the same images in the same order.

    Raises:
        UpdateError: If the shapes do not fit, a feature is not finite, or a layer says the same for every image.
    """
    one, other = _check_features(first, "first"), _check_features(second, "second")
    if len(one) != len(other):
        raise UpdateError(
            f"CKA: features of {len(one)} and {len(other)} images, expected the same images. Run both models on them."
        )
    one, other = one - one.mean(axis=0), other - other.mean(axis=0)
    # Whichever is smaller: products of features or of images; the figure is the same.
    if len(one) < max(one.shape[1], other.shape[1]):
        return _share(float(np.sum((one @ one.T) * (other @ other.T))), one @ one.T, other @ other.T)
    return _share(float(np.sum((other.T @ one) ** 2)), one.T @ one, other.T @ other)


def cka_from_kernels(first: ArrayLike, second: ArrayLike) -> float:
    """Return linear CKA from the layers' kernels ``X X^T`` and ``Y Y^T``, both ``[images, images]``, not centred.

    Raises:
        UpdateError: If the shapes do not fit, an entry is not finite, or a layer says the same for every image.
    """
    one, other = _check_features(first, "first"), _check_features(second, "second")
    if one.shape != other.shape or one.shape[0] != one.shape[1]:
        raise UpdateError(
            f"CKA: kernels of shape {one.shape} and {other.shape}, expected two (images, images) of the same images. "
            "Multiply each layer's features with their own transpose."
        )
    one, other = _centred(one), _centred(other)
    return _share(float(np.sum(one * other)), one, other)


def head_similarity(first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike]) -> FloatArray:
    """Return the cosine of every pair of heads' products, ``[heads_of_first, heads_of_second]``, -1..1.

    A head is a pair of factors ``left, right [heads, head_dim, dim]`` and means their product ``left^T right`` (query
    with key, or output with value). The product does not depend on the basis inside the head, so neither does the
    cosine. It does depend on the basis of the residual stream, which both models must share. A head whose product is
    zero is like none: 0.

    Raises:
        UpdateError: If the factors' shapes do not fit, or one is NaN or infinite.
    """
    left, right, other_left, other_right = _check_factors(*first, *second)
    inner = _head_products(left, right, other_left, other_right)
    own = np.diagonal(_head_products(left, right, left, right))
    other = np.diagonal(_head_products(other_left, other_right, other_left, other_right))
    scale = np.sqrt(np.outer(own, other))
    return np.divide(inner, scale, out=np.zeros_like(inner), where=scale > 0)


def check_path(values: ArrayLike, name: str) -> FloatArray:
    """Return the values of a path as float64 ``[points]``.

    Raises:
        UpdateError: If there are fewer than three points, or one is NaN or infinite.
    """
    path: FloatArray = np.asarray(values, dtype=np.float64)
    if path.ndim != 1 or len(path) < FEWEST_POINTS or not np.isfinite(path).all():
        raise UpdateError(
            f"{name} of a path have shape {path.shape}, expected at least {FEWEST_POINTS} finite numbers with both "
            "ends. Evaluate more points, or lower the learning rate if a model has diverged."
        )
    return path


def _chord(values: FloatArray) -> FloatArray:
    return np.linspace(values[0], values[-1], len(values))


def _check_features(values: ArrayLike, name: str) -> FloatArray:
    features: FloatArray = np.asarray(values, dtype=np.float64)
    if features.ndim != 2 or not features.size or not np.isfinite(features).all():
        raise UpdateError(
            f"CKA: the {name} table has shape {features.shape}, expected two dimensions and finite numbers. "
            "Flatten the features of every image into one row."
        )
    return features


def _centred(kernel: FloatArray) -> FloatArray:
    rows = kernel - kernel.mean(axis=0)
    return rows - rows.mean(axis=1, keepdims=True)


def _share(shared: float, first: FloatArray, second: FloatArray) -> float:
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    if not scale > 0:
        raise UpdateError(
            "CKA: a layer has the same features for every image, which leaves nothing to compare. "
            "Check that its weights are not zero and that the images differ."
        )
    # Rounding can leave a layer compared with itself a few ulp above one.
    return min(1.0, shared / scale)


def _check_factors(*factors: ArrayLike) -> list[FloatArray]:
    arrays: list[FloatArray] = [np.asarray(factor, dtype=np.float64) for factor in factors]
    shapes = [array.shape for array in arrays]
    fits = (
        all(len(shape) == 3 for shape in shapes) and shapes[0][:2] == shapes[1][:2] and shapes[2][:2] == shapes[3][:2]
    )
    if not fits or shapes[0][2] != shapes[2][2] or shapes[1][2] != shapes[3][2]:
        raise UpdateError(
            f"head_similarity: factors of shape {shapes}, expected (heads, head_dim, dim) with equal dim. "
            "Compare models of one architecture."
        )
    if not all(np.isfinite(array).all() for array in arrays):
        raise UpdateError("head_similarity: a factor holds NaN or infinity, expected finite weights. Check the file.")
    return arrays


def _head_products(left: FloatArray, right: FloatArray, other_left: FloatArray, other_right: FloatArray) -> FloatArray:
    """Return ``<left_i^T right_i, other_left_j^T other_right_j>`` without forming a product of size dim x dim."""
    lefts = np.einsum("iad,jbd->ijab", left, other_left)
    rights = np.einsum("iad,jbd->ijab", right, other_right)
    products: FloatArray = np.einsum("ijab,ijab->ij", lefts, rights)
    return products

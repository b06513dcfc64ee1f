"""Rotations: closest, and legal for LayerNorm."""

import torch
from scipy.linalg import orthogonal_procrustes

from popmi_core.matching.elements import random_rotation
from popmi_core.matching.procrustes import polar, stream_rotation

# One SVD of a small matrix in float64.
TIGHT = {"rtol": 0, "atol": 1e-12}


def normal(*size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_polar_factor_is_scipys_procrustes_map():
    a, b = normal(20, 5), normal(20, 5, seed=1)

    # scipy minimises |A X - B|, rows; ours |A - B R^T|.
    expected = orthogonal_procrustes(b.numpy(), a.numpy())[0].T

    torch.testing.assert_close(polar(a.T @ b), torch.from_numpy(expected), **TIGHT)


def test_the_stream_rotation_keeps_the_ones():
    rotation = stream_rotation(normal(9, 9))

    torch.testing.assert_close(rotation @ torch.ones(9).double(), torch.ones(9).double(), **TIGHT)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(9).double(), **TIGHT)


def test_a_planted_stream_rotation_is_found():
    planted, rows = random_rotation(8, torch.Generator().manual_seed(2)), normal(30, 8)

    found = stream_rotation((rows @ planted.T).T @ rows)

    torch.testing.assert_close(found, planted, **TIGHT)


def test_no_other_legal_rotation_fits_better():
    cross = normal(6, 6)
    best = (stream_rotation(cross) * cross).sum()

    others = [(random_rotation(6, torch.Generator().manual_seed(seed)) * cross).sum() for seed in range(200)]

    assert best >= max(others)


def test_a_legal_rotation_passes_layer_norm():
    rotation, tokens = random_rotation(8, torch.Generator().manual_seed(1)), normal(5, 8)
    norm = torch.nn.LayerNorm(8, elementwise_affine=False).double()

    torch.testing.assert_close(norm(tokens @ rotation.T), norm(tokens) @ rotation.T, **TIGHT)

"""Rotations: closest, legal for LayerNorm, and applied to every part of a row."""

import torch
from scipy.linalg import orthogonal_procrustes

from popmi_core.matching.elements import random_rotation
from popmi_core.matching.procrustes import cross_covariance, polar, stream_rotation, turn

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

    found = stream_rotation(cross_covariance(turn(rows, planted), rows, 8))

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


def test_every_full_part_of_a_row_turns_and_the_rest_stays():
    rotation, rows = random_rotation(4, torch.Generator().manual_seed(1)), normal(3, 9)

    turned = turn(rows, rotation)

    torch.testing.assert_close(turned[:, :4], rows[:, :4] @ rotation.T, **TIGHT)
    torch.testing.assert_close(turned[:, 4:8], rows[:, 4:8] @ rotation.T, **TIGHT)
    assert torch.equal(turned[:, 8], rows[:, 8])


def test_no_rotation_returns_the_rows_themselves():
    rows = normal(3, 9)

    assert turn(rows, None) is rows

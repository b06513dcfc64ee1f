"""Fusion rules against numpy and scipy, coordinate by coordinate."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import trim_mean

from popmi_core.config import FuseConfig
from popmi_core.fusion import Update, fuse

# One rounding from float64 to float32.
ROUNDED = {"rtol": 2e-7, "atol": 1e-7}


def make(count, seed):
    values = np.random.default_rng(seed).normal(size=(count, 4, 5)).astype(np.float32)
    updates = [Update(f"s{k:02d}", {"w": torch.from_numpy(v.copy())}, 3 * k + 1) for k, v in enumerate(values)]
    return values, updates, {"w": torch.zeros(4, 5)}


@pytest.mark.parametrize("count", range(1, 12))
def test_the_average_is_numpys(count):
    values, updates, reference = make(count, count)

    found = fuse("average", updates, reference=reference).state["w"]

    expected = np.average(values.astype(np.float64), axis=0, weights=[update.num_examples for update in updates])
    np.testing.assert_allclose(found.numpy(), expected, **ROUNDED)


@pytest.mark.parametrize("count", range(1, 12))
def test_the_median_is_numpys(count):
    values, updates, reference = make(count, count)

    found = fuse("median", updates, reference=reference).state["w"]

    np.testing.assert_allclose(found.numpy(), np.median(values.astype(np.float64), axis=0), **ROUNDED)


@pytest.mark.parametrize("trim", [0.0, 0.1, 0.2, 0.3, 0.49])
@pytest.mark.parametrize("count", range(1, 12))
def test_the_trimmed_mean_is_scipys(count, trim):
    values, updates, reference = make(count, count)

    found = fuse("trimmed_mean", updates, reference=reference, config=FuseConfig(trim=trim)).state["w"]

    np.testing.assert_allclose(found.numpy(), trim_mean(values.astype(np.float64), trim, axis=0), **ROUNDED)


@pytest.mark.parametrize("faulty", [0, 1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_krum_takes_the_site_that_scipys_distances_choose(seed, faulty):
    values, updates, reference = make(2 * faulty + 5, seed)
    table = np.sort(cdist(*2 * [values.reshape(len(values), -1)], "sqeuclidean"), axis=1)
    scores = table[:, 1 : 1 + len(values) - faulty - 2].sum(axis=1)

    found = fuse("krum", updates, reference=reference, config=FuseConfig(faulty=faulty))

    assert found.weights[f"s{scores.argmin():02d}"] == 1
    np.testing.assert_array_equal(found.state["w"].numpy(), values[scores.argmin()])

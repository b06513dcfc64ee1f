"""The mean of products against its dense singular value decomposition."""

import pytest
import torch

from popmi_core.fusion import products
from popmi_core.fusion.products import AlignedSum, Factors, ProductSum, agreed, mean_product


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(sites, *, heads=2, rank=3, out=8, into=7, drift=1.0):
    """Sites' factors around a common start, each in a basis of its own."""
    rows = []
    for site in range(sites):
        left = draw(heads, rank, out) + drift * draw(heads, rank, out, seed=10 + site)
        right = draw(heads, rank, into, seed=1) + drift * draw(heads, rank, into, seed=50 + site)
        basis = draw(heads, rank, rank, seed=90 + site)
        rows.append(((1 + site) / sum(range(1, sites + 1)), Factors(basis @ left, torch.linalg.inv(basis).mT @ right)))
    return rows


def dense(rows, rank):
    mean = sum(weight * factors.left.mT @ factors.right for weight, factors in rows)
    left, values, right = torch.linalg.svd(mean, full_matrices=False)
    kept = float(values[..., :rank].square().sum() / values.square().sum())
    return left[..., :rank] * values[..., None, :rank] @ right[..., :rank, :], kept


@pytest.mark.parametrize("sites", [1, 2, 5])
def test_the_mean_product_is_the_best_of_its_rank(sites):
    rows = make(sites)

    found, kept = mean_product(ProductSum(rows), like=rows[0][1])

    expected, share = dense(rows, 3)
    # Bases of condition number up to about 30.
    torch.testing.assert_close(found.left.mT @ found.right, expected, rtol=1e-9, atol=1e-9)
    assert kept == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize("drift", [0.01, 0.1, 1.0])
def test_the_iteration_finds_what_the_exact_decomposition_finds(monkeypatch, drift):
    rows = make(6, rank=8, out=120, into=130, drift=drift)
    expected, share = dense(rows, 8)
    monkeypatch.setattr(products, "_EXACT", 0)

    found, kept = mean_product(ProductSum(rows), like=rows[0][1])

    # It stops when an iteration gains less than 1e-9 of the squared norm.
    assert kept == pytest.approx(share, abs=1e-7)
    assert (found.left.mT @ found.right - expected).norm() <= 1e-3 * expected.norm()


def test_the_iteration_is_exact_where_the_product_has_the_rank(monkeypatch):
    rows = make(4, rank=8, out=60, into=70, drift=0.0)
    monkeypatch.setattr(products, "_EXACT", 0)

    found, kept = mean_product(ProductSum(rows), like=rows[0][1])

    torch.testing.assert_close(found.left.mT @ found.right, dense(rows, 8)[0], rtol=1e-8, atol=1e-8)
    assert kept == pytest.approx(1, abs=1e-12)


def test_the_iteration_ends_in_float32_too(monkeypatch):
    rows = [(w, Factors(f.left.float(), f.right.float())) for w, f in make(6, rank=8, out=120, into=130, drift=0.1)]
    monkeypatch.setattr(products, "_EXACT", 0)

    found, kept = mean_product(ProductSum(rows), like=rows[0][1])

    assert found.left.dtype == torch.float32
    # Bases of condition number up to about 100, in float32.
    assert kept == pytest.approx(dense(rows, 8)[1], abs=1e-3)


def test_the_iteration_starts_anywhere(monkeypatch):
    """A reference of zeros (a fresh adapter) gives no direction to start from."""
    rows = make(4, rank=4, out=60, into=70, drift=0.1)
    monkeypatch.setattr(products, "_EXACT", 0)
    nothing = Factors(torch.zeros(2, 4, 60, dtype=torch.float64), torch.zeros(2, 4, 70, dtype=torch.float64))

    found, kept = mean_product(ProductSum(rows), like=nothing)

    assert kept == pytest.approx(dense(rows, 4)[1], abs=1e-7)
    assert found.left.isfinite().all()


def test_factors_are_turned_to_the_given_ones():
    rows = make(3)
    start, _ = mean_product(ProductSum(rows), like=rows[0][1])
    quarter = torch.linalg.qr(draw(2, 3, 3, seed=7)).Q

    turned, _ = mean_product(ProductSum(rows), like=Factors(quarter @ start.left, quarter @ start.right))

    # Into a balanced basis of condition up to about 30 and back, through Gram matrices: its fourth power of rounding.
    torch.testing.assert_close(turned.left, quarter @ start.left, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(turned.right, quarter @ start.right, rtol=1e-7, atol=1e-7)


def test_heads_wider_than_what_they_read_are_filled_with_zeros():
    rows = make(2, rank=6, out=4, into=9)

    found, kept = mean_product(ProductSum(rows), like=rows[0][1])

    assert found.left.shape == (2, 6, 4)
    torch.testing.assert_close(found.left.mT @ found.right, dense(rows, 6)[0], rtol=1e-8, atol=1e-8)
    assert kept == pytest.approx(1)


def test_products_of_zero_keep_their_factors_average():
    rows = [(w, Factors(torch.zeros_like(f.left), f.right)) for w, f in make(3)]

    found, kept = mean_product(ProductSum(rows), like=rows[0][1])

    torch.testing.assert_close(found.right, sum(w * f.right for w, f in rows))
    assert not found.left.any()
    assert kept == 1


def test_one_head_of_zeros_does_not_touch_the_others():
    rows = make(3)
    for _, factors in rows:
        factors.left[1] = 0

    found, _ = mean_product(ProductSum(rows), like=rows[0][1])

    torch.testing.assert_close((found.left.mT @ found.right)[0], dense(rows, 3)[0][0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.right[1], sum(w * f.right[1] for w, f in rows))


def test_rows_up_to_a_rotation_are_turned_before_they_are_averaged():
    start = draw(2, 3, 9)
    rows = [(0.5, torch.linalg.qr(draw(2, 3, 3, seed=k)).Q @ start) for k in (1, 2)]

    total = AlignedSum(start)
    for weight, turned in rows:
        total.add(weight, turned)
    torch.testing.assert_close(total.mean, start, rtol=1e-12, atol=1e-12)
    assert total.agreed(start, within=0.0).all()


@pytest.mark.parametrize(("out", "into"), [(8, 7), (7, 12)])
def test_many_sites_are_held_in_as_many_rows_as_the_product_is_wide(out, into):
    rows = make(40, out=out, into=into)
    products = ProductSum(rows)

    left, right = products.stacked()

    assert left.shape[-2] == 7
    torch.testing.assert_close(left.mT @ right, sum(w * f.left.mT @ f.right for w, f in rows), rtol=1e-9, atol=1e-9)
    found, kept = mean_product(products, like=rows[0][1])
    torch.testing.assert_close(found.left.mT @ found.right, dense(rows, 3)[0], rtol=1e-8, atol=1e-8)
    assert kept == pytest.approx(dense(rows, 3)[1], abs=1e-9)
    size = sum(w * (f.left.mT @ f.right).square().sum((-2, -1)) for w, f in rows)
    torch.testing.assert_close(products.size, size)


@pytest.mark.parametrize("sites", [3, 30])
def test_sites_agree_as_far_as_their_products_spread(sites):
    start = Factors(draw(2, 3, 8), draw(2, 3, 7, seed=1))
    rows = []
    for site in range(sites):
        drift = torch.tensor([0.05, 3.0], dtype=torch.float64)[:, None, None] * draw(2, 3, 8, seed=10 + site)
        rows.append((1 / sites, Factors(start.left + drift, start.right)))
    plain = Factors(sum(w * f.left for w, f in rows), start.right)
    mean = sum(w * f.left.mT @ f.right for w, f in rows)
    spread = sum(w * (f.left.mT @ f.right - mean).square().sum((-2, -1)) for w, f in rows).sqrt()
    share = spread / mean.square().sum((-2, -1)).sqrt()

    assert agreed(ProductSum(rows), plain, within=0.5).tolist() == [True, False]
    for head in range(2):
        edge = float(share[head])
        assert not agreed(ProductSum(rows), plain, within=0.999 * edge)[head]
        assert agreed(ProductSum(rows), plain, within=1.001 * edge)[head]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("condition", [10, 1e3, 1e5])
def test_the_same_numbers_agree_however_bad_their_basis(condition, dtype):
    """The norms of such products drown in rounding; that the factors are equal does not."""
    left, right = draw(2, 8, 32), draw(2, 8, 40, seed=1)
    spectrum = torch.logspace(0, float(torch.log10(torch.tensor(condition))), 8, dtype=torch.float64)[:, None]
    factors = Factors((spectrum * left).to(dtype), (right / spectrum).to(dtype))
    rows = [(0.2, factors), (0.3, factors), (0.5, factors)]
    plain = Factors(sum(w * f.left for w, f in rows), sum(w * f.right for w, f in rows))

    assert agreed(ProductSum(rows), plain, within=0.5).all()
    other = Factors(factors.left.clone(), factors.right)
    other.left[1] *= -3
    assert agreed(ProductSum([*rows, (1.0, other)]), plain, within=0.5).tolist() == [True, False]

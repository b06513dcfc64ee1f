"""Any set of pictures as sites."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from popmi_core.data import load_site, locate
from popmi_core.data.card import read_card
from popmi_core.data.cut import by_column, by_dirichlet, read_pool, write_sites
from popmi_core.errors import DataError

MakeHospital = Callable[..., Path]
MakeNpz = Callable[..., Path]


def test_sites_cut_from_an_npz_file_hold_every_picture_once(make_npz: MakeNpz, tmp_path: Path) -> None:
    pool = read_pool(str(make_npz()), image_size=None)
    assignment = by_dirichlet(pool, num_sites=3, alpha=5.0, rng=np.random.default_rng(0), least=1)

    card = write_sites(pool, assignment, tmp_path / "cut", recipe="test")
    found = locate(str(tmp_path / "cut"), image_size=9)
    sites = [load_site(site, spec, image_size=9, phantom_images=35, seed=0) for site, spec in found.sites.items()]

    assert read_card(tmp_path / "cut") == card
    assert (found.classes, list(found.sites)) == (("0", "1", "2"), ["site_1", "site_2", "site_3"])
    for split in ("train", "val", "test"):
        together = np.concatenate([getattr(site, split).images for site in sites])
        given = np.stack([pool.images[i] for i in range(len(pool)) if pool.splits[i] == split])
        order = [np.lexsort(part.reshape(len(part), -1).T) for part in (together, given)]
        np.testing.assert_array_equal(together[order[0]], given[order[1]])


def test_the_same_seed_gives_the_same_sites_and_a_small_alpha_gives_skewed_ones(make_npz: MakeNpz) -> None:
    pool = read_pool(str(make_npz()), image_size=None)

    def shares(alpha: float) -> np.ndarray:
        cut = by_dirichlet(pool, num_sites=3, alpha=alpha, rng=np.random.default_rng(7), least=0)
        counts = [np.bincount([pool.targets[i] for i in positions], minlength=3) for positions in cut.values()]
        return np.array(counts) / 30  # each of three classes has 30 pictures

    np.testing.assert_array_equal(shares(0.1), shares(0.1))
    # A share drawn with alpha 1000 is 1/3 with standard deviation 0.009, and is rounded to 1/30.
    assert np.abs(shares(1000.0) - 1 / 3).max() < 0.07
    assert shares(0.1).max() > 0.8


def test_a_lesion_goes_to_one_site_and_keeps_its_split(make_hospital: MakeHospital, tmp_path: Path) -> None:
    pool = read_pool(str(make_hospital(lesions=60)), image_size=8)
    cut = by_dirichlet(pool, num_sites=2, alpha=10.0, rng=np.random.default_rng(0), least=2)

    owners = {pool.groups[i]: set() for i in range(len(pool))}
    for site, positions in cut.items():
        for position in positions:
            owners[pool.groups[position]].add((site, pool.splits[position]))
    assert {len(owner) for owner in owners.values()} == {1}
    write_sites(pool, cut, tmp_path / "cut", recipe="test")
    assert (tmp_path / "cut/site_1/labels.csv").read_text().splitlines()[1].split(",")[1].startswith("L")


def test_a_column_makes_the_sites(make_hospital: MakeHospital, tmp_path: Path) -> None:
    rows = [
        {"image": f"P{n}", "diagnosis": "nv", "split": ("train", "test")[n // 2 % 2], "ward": ("A 1", "../B")[n % 2]}
        for n in range(12)
    ]
    pool = read_pool(str(make_hospital(rows)), image_size=8)

    write_sites(pool, by_column(pool, "Ward"), tmp_path / "cut", recipe="test")

    found = locate(str(tmp_path / "cut"), image_size=8)
    assert list(found.sites) == ["a_1", "b"]
    data = load_site("b", found.sites["b"], image_size=8, phantom_images=35, seed=0)
    # Odd rows are ward B; the fixture paints picture n with red 4 n.
    assert sorted(data.train.images[:, 0, 0, 0] // 4) == [1, 5, 9]


def test_existing_sites_can_be_cut_anew(make_hospital: MakeHospital, tmp_path: Path) -> None:
    for name in ("all/north", "all/south"):
        make_hospital(name=name, lesions=12)

    pool = read_pool(str(tmp_path / "all"), image_size=8)

    assert len(pool) == 48
    assert {site: len(positions) for site, positions in by_column(pool, "site").items()} == {"north": 24, "south": 24}


def test_progress_ends_at_all_pictures(make_npz: MakeNpz, tmp_path: Path) -> None:
    pool = read_pool(str(make_npz()), image_size=None)
    calls: list[tuple[int, int]] = []

    write_sites(
        pool,
        {"a": range(90)},
        tmp_path / "cut",
        recipe="test",
        progress=lambda *done: calls.append(done),
    )

    assert calls == [(90, 90)]


def test_the_phantom_is_not_cut() -> None:
    with pytest.raises(DataError, match="the phantom is five sites already"):
        read_pool("phantom", image_size=None)


def test_too_many_sites_are_refused(make_npz: MakeNpz) -> None:
    pool = read_pool(str(make_npz()), image_size=None)

    with pytest.raises(DataError, match=r"90 pictures do not give 20 sites of at least 5 pictures .* at alpha 0.1"):
        by_dirichlet(pool, num_sites=20, alpha=0.1, rng=np.random.default_rng(0))


def test_a_missing_or_useless_column_is_refused(make_hospital: MakeHospital) -> None:
    pool = read_pool(str(make_hospital()), image_size=8)

    with pytest.raises(DataError, match="has no column 'ward'; it has diagnosis, image, lesion_id, site"):
        by_column(pool, "ward")
    with pytest.raises(DataError, match=r"column 'site' has 1 value\(s\), expected 2 to 100"):
        by_column(pool, "site")


def test_a_folder_that_is_not_empty_is_left_alone(make_npz: MakeNpz, tmp_path: Path) -> None:
    pool = read_pool(str(make_npz()), image_size=None)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")

    with pytest.raises(DataError, match="thesis is not empty"):
        write_sites(pool, {"a": range(90)}, tmp_path / "thesis", recipe="test")

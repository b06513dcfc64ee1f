"""The phantom's brushes: noise, spots, lines, outlines, colours, features, compression."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popmi_core.data.labels import DERMOSCOPY_CLASSES
from popmi_core.data.phantom.canvas import axis, bend, smooth_noise, splat, stroke
from popmi_core.data.phantom.classes import FEATURES, Feature, draw_amounts, draw_traits
from popmi_core.data.phantom.devices import DEVICES, compress, photograph
from popmi_core.data.phantom.layers import Layers, Stack
from popmi_core.data.phantom.lesion import Lesion, draw_lesion, draw_outline

SEEDS = st.integers(0, 2**32 - 1)


def a_few_lesions(seed: int = 0, count: int = 4, size: int = 32) -> Lesion:
    rng = np.random.default_rng(seed)
    outline = draw_outline(rng, np.full(count, 0.5, np.float32), np.full(count, 0.1, np.float32))
    flat = np.full(count, 0.1, np.float32)
    return draw_lesion(rng, outline, flat, 5 * flat, 0 * flat, size)


@pytest.mark.parametrize(("low", "high"), [(0.7, 3.0), (4.0, 8.0), (9.0, 13.0)])
def test_noise_has_unit_variance_and_no_direction(low: float, high: float) -> None:
    noise = smooth_noise(np.random.default_rng(0), 400, 48, low, high)
    # 400 fields of a few hundred waves each: the standard error of the variance is under 1 %, of slow waves 3 %.
    assert noise.var() == pytest.approx(1.0, abs=0.08)
    down, across = np.diff(noise, axis=1).var(), np.diff(noise, axis=2).var()
    assert down == pytest.approx(across, rel=0.08)
    half = (noise[:, :-1, :-1] - noise[:, 1:, 1:]).var(), (noise[:, 1:, :-1] - noise[:, :-1, 1:]).var()
    assert half[0] == pytest.approx(half[1], rel=0.08)


def test_noise_is_the_same_field_at_every_size() -> None:
    small = smooth_noise(np.random.default_rng(3), 2, 32, 1.0, 4.0)
    large = smooth_noise(np.random.default_rng(3), 2, 96, 1.0, 4.0)
    # Every third pixel of the large picture lies on a pixel centre of the small one; float32 sums of 200 waves.
    assert np.allclose(small, large[:, 1::3, 1::3], atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_spots_equal_the_sum_written_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.uniform(-1, 1, (2, 5, 2)).astype(np.float32)
    sigma = rng.uniform(0.1, 0.4, (2, 5)).astype(np.float32)
    weight = rng.uniform(0, 1, (2, 5)).astype(np.float32)
    drawn = splat(points, sigma, weight, 16)
    expected = np.zeros((2, 16, 16))
    wide = np.sqrt(sigma**2 + (0.5 / 16) ** 2)
    for n in range(2):
        for k in range(5):
            square = (axis(16)[None, :] - points[n, k, 0]) ** 2 + (axis(16)[:, None] - points[n, k, 1]) ** 2
            expected[n] += weight[n, k] * sigma[n, k] / wide[n, k] * np.exp(-square / (2 * wide[n, k] ** 2))
    assert np.allclose(drawn, expected, atol=1e-5)  # float32 against float64


def test_a_line_has_its_weight_whatever_the_sampling() -> None:
    def line(steps: int) -> np.ndarray:
        start = np.array([[[-0.8, 0.0]]], np.float32)
        zero = np.zeros((1, 1), np.float32)
        path = bend(start, zero, np.full((1, 1), 1.6, np.float32), zero, steps)
        return stroke(path, np.full((1, 1, steps), 0.08, np.float32), np.ones((1, 1), np.float32), 33)[0]

    # A spot per 0.4 widths and one per 0.2: the ripple of either is far below a percent.
    assert np.allclose(line(50), line(100), atol=0.02)
    # The middle of the line, dimmed by the half-pixel floor (under 2 % at this width).
    assert line(100)[16, 16] == pytest.approx(1.0, abs=0.03)


def test_an_arc_starts_where_it_is_told_and_has_its_length() -> None:
    start = np.array([[[0.2, -0.3]]], np.float32)
    arc = bend(
        start, np.full((1, 1), 0.7, np.float32), np.full((1, 1), 0.5, np.float32), np.ones((1, 1), np.float32), 20
    )
    assert np.allclose(arc[0, 0, 0], start[0, 0], atol=1e-6)
    assert np.linalg.norm(np.diff(arc[0, 0], axis=0), axis=1).sum() == pytest.approx(0.5, rel=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_depth_zero_is_the_contour_and_depth_one_the_centre(seed: int) -> None:
    rng = np.random.default_rng(seed)
    outline = draw_outline(rng, rng.uniform(0.2, 0.9, 3).astype(np.float32), np.full(3, 0.15, np.float32))
    angle = rng.uniform(-np.pi, np.pi, (3, 4)).astype(np.float32)
    rim = outline.place(np.zeros((3, 4), np.float32), angle) - outline.centre[:, None]
    assert np.allclose(np.linalg.norm(rim, axis=-1), outline.radius_at(angle), atol=1e-5)
    assert np.allclose(outline.place(np.ones((3, 4), np.float32), angle), outline.centre[:, None], atol=1e-6)
    assert np.all(outline.radius_at(angle) >= 0.349 * outline.radius[:, None])


def test_taking_rows_takes_them_everywhere() -> None:
    lesion = a_few_lesions()
    part = lesion.take(np.array([3, 1]))
    assert len(part) == 2
    assert np.array_equal(part.depth[0], lesion.depth[3])
    assert np.array_equal(part.outline.phases[1], lesion.outline.phases[1])


def test_bare_skin_keeps_its_colour() -> None:
    skin = np.array([[0.9, 0.7, 0.6]], np.float32)
    assert np.allclose(Stack(1, 4).colour(skin), skin[:, None, None, :])


def test_melanin_browns_and_blood_reddens() -> None:
    skin = np.array([[0.9, 0.7, 0.6]], np.float32)
    ones = np.ones((1, 2, 2), np.float32)
    brown, red = Stack(1, 2), Stack(1, 2)
    brown.add(Layers(melanin=ones))
    red.add(Layers(blood=ones))
    brown_colour, red_colour = brown.colour(skin)[0, 0, 0], red.colour(skin)[0, 0, 0]
    assert np.all(brown_colour < skin[0])
    assert brown_colour[0] > brown_colour[1] > brown_colour[2]
    assert red_colour[0] / red_colour[1] > brown_colour[0] / brown_colour[1]


def test_colours_stay_in_range_under_any_cover() -> None:
    stack = Stack(1, 4)
    much = np.full((1, 4, 4), 9.0, np.float32)
    stack.add(Layers(melanin=-much, blood=much, deep=much, white=much, keratin=much))
    colour = stack.colour(np.array([[1.0, 0.8, 0.8]], np.float32))
    # White may be a tenth brighter than paper, the camera clips it.
    assert colour.min() >= 0
    assert colour.max() <= 1.1


@pytest.mark.parametrize("feature", [pair[0] for pair in FEATURES], ids=lambda feature: feature.__name__)
def test_a_feature_is_finite_and_vanishes_with_its_amount(feature: Feature) -> None:
    lesion = a_few_lesions()

    def total(amount: float) -> float:
        layers = feature(np.random.default_rng(1), lesion, np.full(len(lesion), amount, np.float32))
        maps = [np.asarray(value) for value in vars(layers).values()]
        assert all(np.isfinite(value).all() for value in maps)
        assert all(value.shape in ((), lesion.depth.shape) for value in maps)
        return sum(float(np.abs(value).sum()) for value in maps)

    assert total(0.0) == 0.0
    assert total(1.0) > 1.0


def test_the_table_of_features_has_a_share_for_every_class() -> None:
    shares = np.array([row for _, row in FEATURES])
    assert shares.shape == (len(FEATURES), len(DERMOSCOPY_CLASSES))
    assert shares.min() >= 0
    assert shares.max() < 100  # no feature gives a class away for certain
    assert (shares.argmax(axis=0) >= 0).all()


def test_amounts_occur_as_often_as_the_table_says() -> None:
    targets = np.full(4000, 4)
    amounts = draw_amounts(np.random.default_rng(0), targets)
    shares = np.array([row[4] for _, row in FEATURES]) / 100
    # Four standard errors of a share of 4000 draws.
    assert np.allclose((amounts > 0).mean(axis=1), shares, atol=4 * np.sqrt(0.25 / 4000))
    assert amounts.max() <= 1.0


def test_traits_are_never_negative() -> None:
    traits = draw_traits(np.random.default_rng(0), np.arange(7).repeat(200))
    assert all((values >= 0).all() for values in vars(traits).values())
    assert traits.radius.min() >= 0.14


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_compression_does_not_mind_a_quarter_turn(seed: int) -> None:
    picture = np.random.default_rng(seed).random((1, 16, 16, 3), dtype=np.float32)
    turned = compress(np.rot90(picture, axes=(1, 2)), 8.0)
    # A coefficient on the edge of rounding may fall either way; all others agree to float32.
    close = np.isclose(turned, np.rot90(compress(picture, 8.0), axes=(1, 2)), atol=1e-5)
    assert close.mean() > 0.75


@pytest.mark.parametrize("size", [16, 20, 28, 33])
def test_finer_compression_loses_less_at_any_size(size: int) -> None:
    picture = np.random.default_rng(0).random((2, size, size, 3), dtype=np.float32)
    errors = [float(np.abs(compress(picture, step) - picture).mean()) for step in (0.01, 2.0, 10.0)]
    assert errors[0] < 1e-3 < errors[1] < errors[2]


def test_a_photograph_leaves_the_scene_as_it_was() -> None:
    scene = np.full((6, 16, 16, 3), 0.6, np.float32)
    for device in DEVICES.values():
        taken = photograph(np.random.default_rng(0), scene, device)
        assert np.all(scene == np.float32(0.6))
        assert taken.shape == scene.shape
        assert np.isfinite(taken).all()

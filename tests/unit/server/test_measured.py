"""What sites measured beside figures: what is refused, how it is pooled, what the record gets."""

from __future__ import annotations

import numpy as np
import pytest

from popmi_core.errors import UpdateError
from popmi_core.measure import LayerLee, TurnedShares, TurnedTold, TurningAsk
from popmi_core.metrics import summarise_scores
from popmi_core.metrics.confusions import confusion_to_tell
from popmi_core.protocol import Report
from server.measured import (
    check_classes,
    check_table,
    check_turned,
    joined_details,
    round_details,
    split_details,
    turned_details,
)
from server.results import Evaluation

ASK = TurningAsk(angles=4, images=20, lee_images=8)
CLASSES = ("mel", "nv", "bcc")


def shares(value: float, count: int = 4) -> TurnedShares:
    return TurnedShares(total_variation=(value,) * count, flips=(value,) * count, accuracy=(1 - value,) * count)


def turned(value: float = 0.25, images: int = 10, *, lee: float | None = 2.0, **changes) -> TurnedTold:
    layers = () if lee is None else (LayerLee(name="norm", kind="norm", value=lee),)
    told = {"num_images": images, "figures": shares(value), "floor": shares(value / 5), "layers": layers}
    return TurnedTold(**{**told, "lee_images": 0 if lee is None else 8, **changes})


def report(**changes) -> Report:
    told = {"run": "r", "server_round": 1, "site": "a", "split_sizes": {"train": 60, "val": 20, "test": 0}}
    return Report(**{**told, **changes})


def scored(count: int = 200, *, seed: int = 0):
    rng = np.random.default_rng(seed)
    target = rng.choice(3, count, p=(0.6, 0.3, 0.1))
    odds = np.exp(rng.normal(size=(count, 3)) + 1.5 * np.eye(3)[target])
    scores = odds / odds.sum(axis=1, keepdims=True)
    summary = summarise_scores(scores, target)
    return summary, confusion_to_tell(scores, target, summary)


def test_figures_of_turned_images_as_asked_are_taken():
    check_turned(None, None, report(), "site a")
    check_turned(None, ASK, report(), "site a")
    check_turned(turned(), ASK, report(), "site a")
    check_turned(turned(lee=None), ASK, report(), "site a")


@pytest.mark.parametrize(
    ("told", "ask", "why"),
    [
        (turned(), None, "expected none: nobody asked"),
        (turned(figures=shares(0.5, 3)), ASK, "total_variation of turned images has 3 numbers, expected 4"),
        (turned(floor=shares(0.5, 5)), ASK, "has 5 numbers, expected 4"),
        (turned(images=21), ASK, "21 images were turned and 8 looked at layer by layer, expected at most 20 and 8"),
        (turned(lee_images=9), ASK, "9 looked at layer by layer, expected at most 20 and 8"),
        (turned(lee=None, lee_images=8), ASK, "LEE of 0 layers over 8 images"),
        (turned(lee_images=4), ASK, "LEE of 1 layers over 4 images, expected at least 5"),
    ],
)
def test_figures_of_turned_images_that_were_not_asked_so_are_refused(told, ask, why):
    with pytest.raises(UpdateError, match=rf"^site a: .*{why}"):
        check_turned(told, ask, report(), "site a")


def test_more_turned_images_than_the_site_has_are_refused():
    with pytest.raises(UpdateError, match="10 images were turned and 8 looked at layer by layer, expected at most 6"):
        check_turned(turned(), ASK, report(split_sizes={"val": 6}), "site a")


def test_a_confusion_table_that_goes_with_its_scores_is_taken_and_none_is_no_fault():
    summary, table = scored()
    check_table(table, summary, "val", "site a")
    check_table(None, summary, "val", "site a")
    check_table((), summary, "val", "site a")


@pytest.mark.parametrize(
    "table",
    [
        ((9, None), (None, None)),
        ((9, None, None), (None, None, None), (None, None)),
        ((4, None, None), (None,) * 3, (None,) * 3),
        ((150, None, None), (None,) * 3, (None,) * 3),
        ((0, None, None), (None,) * 3, (None,) * 3),
    ],
)
def test_a_confusion_table_of_other_classes_small_cells_or_too_many_images_is_refused(table):
    with pytest.raises(UpdateError, match="site a: the confusion table of split val has"):
        check_table(table, scored()[0], "val", "site a")


def test_cells_of_a_withheld_class_are_refused():
    summary, _ = scored(22)
    withheld = summary.withheld[0]
    table = tuple((9 if row == withheld else None, None, None) for row in range(3))
    with pytest.raises(UpdateError, match="no more than the 0 images its scores tell of"):
        check_table(table, summary, "val", "site a")


@pytest.mark.parametrize(
    ("table", "fine"),
    [
        ({}, True),
        ({"val": (12, 8, None)}, True),
        ({"val": (12, 8)}, False),
        ({"val": (12, 4, None)}, False),
        ({"val": (16, 5, None)}, False),
        ({"test": (5, None, None)}, False),
    ],
)
def test_numbers_by_class_must_fit_the_classes_and_the_split(table, fine):
    said = check_classes(report(class_table=table), 3)
    assert (said == "") is fine
    assert fine or "Give the site the server's POPMI version" in said


def test_what_a_site_tells_on_joining_stands_in_the_record():
    told = report(popmi="0.1.0", skipped_rows=7, class_table={"val": (12, 8, None)})
    joined, classes = joined_details(told, CLASSES, (4.0, 1e-5))
    assert joined[:3] == ("a", "train", "joined")
    assert joined.value == {
        "popmi": "0.1.0", "skipped_rows": 7, "split_sizes": {"train": 60, "val": 20, "test": 0}, "phantom": False,
        "epsilon_limit": 4.0, "delta": 1e-5,
    }  # fmt: skip
    assert classes == ("a", "val", "classes", {"classes": CLASSES, "counts": (12, 8, None), "min_cell": 5})
    assert next(iter(joined_details(report(), CLASSES, None))).value["epsilon_limit"] is None


def test_turned_images_are_pooled_by_their_numbers():
    told = {"a": turned(0.1, 10), "b": turned(0.4, 20, lee=5.0)}
    details = {(item.scope, item.kind): item.value for item in turned_details(told)}
    pooled = details["global", "rotation"]
    assert pooled["angles"] == [0.0, 90.0, 180.0, 270.0]
    assert pooled["num_images"] == 30
    assert pooled["flips"] == pytest.approx([(0.1 * 10 + 0.4 * 20) / 30] * 4)
    assert pooled["floor"]["accuracy"] == pytest.approx([1 - 0.3 / 5] * 4)
    assert details["a", "rotation"]["total_variation"] == [0.1] * 4
    assert details["global", "lee"]["layers"] == [{"name": "norm", "kind": "norm", "value": 3.5}]
    assert details["b", "lee"]["num_images"] == 8


def test_a_site_that_could_not_follow_its_layers_is_in_the_curve_and_not_in_lee():
    details = list(turned_details({"a": turned(), "b": turned(lee=None)}))
    assert sorted((item.scope, item.kind) for item in details) == [
        ("a", "lee"), ("a", "rotation"), ("b", "rotation"), ("global", "lee"), ("global", "rotation"),
    ]  # fmt: skip


def test_no_mean_is_made_over_different_layers():
    other = turned(layers=(LayerLee(name="head", kind="linear", value=1.0),))
    assert ("global", "lee") not in {(item.scope, item.kind) for item in turned_details({"a": turned(), "b": other})}


def test_calibration_and_confusion_are_told_of_every_site_and_of_all_together():
    (first, table), (second, other) = scored(seed=1), scored(seed=2)
    found = list(split_details("val", {"a": first, "b": second}, {"a": table, "b": other}, CLASSES))
    details = {(item.scope, item.kind): item.value for item in found}
    assert details.keys() == {(scope, kind) for scope in ("a", "b", "global") for kind in ("calibration", "confusion")}
    pooled = details["global", "confusion"]["counts"]
    for row in range(3):
        for column in range(3):
            cells = [one[row][column] for one in (table, other)]
            assert pooled[row][column] == (None if None in cells else sum(cells))
    bins = details["global", "calibration"]["bins"]
    assert len(bins) == 15
    assert sum(one["count"] for one in bins) == pytest.approx(400, abs=15)
    assert all(one["lower"] <= one["accuracy"] <= one["upper"] for one in bins)


def test_a_site_with_too_few_images_to_tell_anything_hides_nobody_else_s_cells():
    (first, table), (few, empty) = scored(seed=1), scored(4)
    found = split_details("val", {"a": first, "b": few}, {"a": table, "b": empty}, CLASSES)
    details = {(item.scope, item.kind): item.value for item in found}
    assert details["global", "confusion"]["counts"] == table
    assert ("b", "calibration") not in details


def test_a_round_s_details_come_scope_by_scope():
    summary, table = scored()
    evaluation = Evaluation(summaries={"val": {"a": summary}}, tables={"val": {"a": table}}, turned={"a": turned()})
    found = round_details(evaluation, CLASSES)
    assert found.keys() == {"a", "global"}
    assert [item.kind for item in found["a"]] == ["calibration", "confusion", "rotation", "lee"]

"""What the one-shot study's page says of its results."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "results" / "oneshot.md"


@pytest.fixture
def tables(load_from):
    return load_from("oneshot", "tables")


def row(method, side, case, auroc, *, nll=1.0, balanced=0.5, looks="weights", count=2, **more):
    return {
        "dataset": "dermoscopy", "architecture": "popmi_vit_64", "n": count, "method": method, "side": side,
        "looks": looks, "parents": [str(case), "b"], "best_parent": 0.8, "parents_nll": [1.0, 2.0], "accuracy": auroc,
        "balanced_accuracy": balanced, "auroc": auroc, "nll": nll, "seconds": 1.0, **more,
    }  # fmt: skip


def both(ours, theirs, **more):
    """One row of OPM and one of a rival in every case."""
    found = [row("OPM-Soup", "opm", case, value, **more) for case, value in enumerate(ours)]
    return found + [row("FedMA", "rival", case, value, **more) for case, value in enumerate(theirs)]


def test_the_committed_page_is_what_the_committed_results_print(tables):
    assert tables.report(json.loads(PAGE.with_suffix(".json").read_text())) == PAGE.read_text()


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ([0.9, 0.8, 0.1], [0.2, 0.7, 0.05], "OPM ahead; better in 3 of 3 cases, median difference +0.100"),
        ([0.9, 0.70, 0.1], [0.2, 0.71, 0.72], "OPM **behind**; better in 1 of 3 cases, median difference -0.010"),
        ([0.9, 0.7, 0.1], [0.95, 0.2, 0.2], "OPM ahead by medians, **behind** case by case; better in 1 of 3 cases"),
        ([0.96, 0.2, 0.3], [0.95, 0.7, 0.2], "OPM **behind** by medians, ahead case by case; better in 2 of 3 cases"),
        ([0.5, 0.6], [0.5, 0.6], "OPM level; better in 0 of 2 cases, level in 2"),
    ],
)
def test_medians_and_cases_are_told_where_they_differ(tables, ours, theirs, said):
    assert said in tables.verdicts(both(ours, theirs), "auroc")[0]


def test_a_median_that_cases_do_not_bear_out_asks_for_no_reason(tables):
    behind = tables.verdicts(both([0.96, 0.2, 0.3], [0.95, 0.7, 0.2]), "auroc")[0]
    assert behind.endswith("Case by case FedMA is not ahead.")
    ahead = tables.verdicts(both([0.9, 0.7, 0.1], [0.95, 0.2, 0.2]), "auroc")[0]
    assert ahead.endswith("Why FedMA is better in more cases is not known.")


def test_the_page_is_printed_again_from_its_results_alone(tables, tmp_path, monkeypatch):
    results = json.dumps(both([0.6], [0.5]))
    (tmp_path / "page.json").write_text(results)
    monkeypatch.setattr(sys, "argv", ["study.py", "--from-json", "--out", str(tmp_path / "page")])
    importlib.import_module("study").main()
    assert (tmp_path / "page.md").read_text() == tables.report(json.loads(results))
    assert (tmp_path / "page.json").read_text() == results


def test_the_rise_is_the_loss_above_the_mean_of_the_parents(tables):
    fused = row("OPM", "opm", 0, 0.5, nll=1.7, repaired={"nll": 1.6, "auroc": 0.5})
    assert tables.rise(fused) == pytest.approx(0.2)
    assert tables.rise(fused, repaired=True) == pytest.approx(0.1)
    assert tables.rise(row("OPM", "opm", 0, 0.5), repaired=True) is None
    assert "| 0.200 |" in tables.table([fused], "dermoscopy")


def test_what_an_epoch_makes_of_fused_models_is_judged(tables):
    rows = both([0.6, 0.6], [0.5, 0.5], count=4)
    for found, after in zip(rows, (0.70, 0.84, 0.75, 0.86), strict=True):
        found["after_epoch"] = {"auroc": after}
    line = tables.verdicts(rows, "auroc")[-1]
    assert "after one epoch: OPM-Soup 0.770, best rival FedMA 0.805" in line
    assert "OPM **behind**; better in 0 of 2 cases" in line
    assert "above the best parent in 1 of 2 cases. Before the epoch they had 0.600 and 0.500." in line
    assert "not known" in line


@pytest.mark.parametrize(
    ("with_images", "meant"),
    [
        ((0.7, 0.7), "weights alone do not find the basis"),
        ((0.3, 0.3), "a basis found with images is no better"),
        ((0.7, 0.3), "that settles nothing"),
    ],
)
def test_where_opm_is_behind_the_same_average_is_asked_for_in_better_bases(tables, with_images, meant):
    rows = both([0.5, 0.5], [0.6, 0.6])
    for method, value in zip(("OPM-Soup, statistics", "OPM, maps learned without labels"), with_images, strict=True):
        rows += [row(method, "opm", case, value, looks="unlabelled") for case in (0, 1)]
    rows += [row("ensemble", "reference", case, 0.8) for case in (0, 1)]
    assert meant in tables.verdicts(rows, "auroc")[0]


def test_a_model_that_names_one_class_only_is_told(tables):
    told = "Balanced accuracy is that of one class for every image"
    assert told in tables.verdicts(both([0.6], [0.5], balanced=1 / 7), "auroc")[0]
    assert told not in tables.verdicts(both([0.6], [0.5], balanced=0.2), "auroc")[0]


def test_a_lower_loss_of_another_opm_rule_comes_with_its_auroc(tables):
    rows = [*both([0.5], [0.6]), row("OPM", "opm", 0, 0.4, nll=0.9)]
    assert "OPM has the lowest loss, 0.900, at auroc 0.400." in tables.verdicts(rows, "auroc")[0]

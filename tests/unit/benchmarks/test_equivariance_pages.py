"""What the pages of the equivariance benchmarks say of their results, and which runs are planned in which order."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[3] / "docs" / "results"
FOLDER = "equivariance"
# Name of a page -> the module that prints it.
PAGES = {"equivariance": "page", "exactness": "exactness_page", "posthoc": "posthoc_page", "overhead": "overhead"}
COMMITTED = [name for name in PAGES if (RESULTS / f"{name}.json").exists()]


def run_of(row, accuracy, *, seed=0, dataset="blood", flops=1.0, over=1.5, tested=3421, **more):
    return {
        "dataset": dataset, "row": row, "seed": seed, "key": f"{row}{seed}", "tested": tested, "accuracy": accuracy,
        "balanced_accuracy": accuracy - 0.01, "auroc": 0.9, "flops": 5e6, "flops_of_plain": flops, "parameters": 1000,
        "images_per_second": 100.0, "times_plain": flops, "training": {"seconds": 10.0, "seen": 72_000},
        "turning": {"total_variation": 0.1, "flips": 0.1, "worst_accuracy": 0.8, "worst_auroc": 0.8,
                    "over_floor": {"total_variation": 2.0, "total_variation_max": over}},
        "lee": {"rotation": 0.02}, "error": {"C4": 1e-6, "D4": 1.2}, **more,
    }  # fmt: skip


@pytest.fixture
def cases(load_from):
    return load_from(FOLDER, "cases")


@pytest.fixture
def page(load_from):
    return load_from(FOLDER, "page")


@pytest.fixture
def goals(load_from):
    return load_from(FOLDER, "goals")


@pytest.fixture
def exactness_page(load_from):
    return load_from(FOLDER, "exactness_page")


def test_telling_rows_run_from_every_seed_first_and_no_row_runs_twice_before_its_like_ran_once(cases):
    planned = list(cases.cases(cases.DATASETS, 2))

    order = [(case.row.tier > 1, case.seed, case.row.tier) for case in planned]
    assert order == sorted(order)
    assert {case.seed for case in planned if case.row.tier <= 1} == {0, 1}


def test_no_two_runs_share_a_result_and_every_start_is_a_row(cases):
    planned = list(cases.cases(cases.DATASETS, 2))

    assert len({case.key for case in planned}) == len(planned)
    assert all(case.start().row.name == case.row.start for case in planned if case.row.start)


def test_what_only_sorts_and_names_a_row_does_not_rename_its_result(cases):
    row = cases.named("PREA C4", "blood")
    moved = cases.Row(**{**vars(row), "name": "another name", "tier": 9})

    assert cases.Case("blood", moved, 0).key == cases.Case("blood", row, 0).key
    assert cases.Case("blood", row, 1).key != cases.Case("blood", row, 0).key


def test_a_partial_page_says_what_has_not_been_run(page):
    said = page.report([run_of("plain", 0.9)], 3)

    assert "**Not finished: 1 of " in said
    assert "| plain | 1 | 90.00 |" in said
    assert "Not run yet: plain + rotations; " in said
    assert "Fewer than 3 seeds: plain (1)." in said
    assert said.count("No run yet.") == 2


def test_a_cell_is_the_median_with_lowest_and_highest(page):
    assert page.cell([0.9, 0.92, 0.91], 1, 100) == "91.0 (90.0 to 92.0)"
    assert page.cell([0.9], 1, 100) == "90.0"
    assert page.cell([None], 1, 100) == "-"


def test_the_overview_has_a_median_and_a_cost_and_marks_few_seeds(load_from):
    overview = load_from(FOLDER, "overview")
    rows = [run_of("plain", accuracy, seed=seed) for seed, accuracy in enumerate((0.9, 0.8, 0.86))]
    said = overview.overview([*rows, run_of("PREA D4", 0.9, flops=3.5)])
    assert "| plain backbone |  | 86.0 at 1.00 x |  |" in said
    assert "| PREA D4 |  | 90.0' at 3.50 x |  |" in said
    assert "lambda" not in said


def test_every_line_of_the_overview_is_a_row_of_the_study(load_from):
    overview, cases = load_from(FOLDER, "overview"), load_from(FOLDER, "cases")
    planned = {(dataset, row.name) for dataset in cases.DATASETS for row in cases.rows_of(dataset)}
    for said, names in overview.LINES.items():
        assert any((dataset, name) in planned for dataset, name in names.items()), said


def test_a_row_tested_or_turned_on_fewer_images_is_marked(page):
    rows = [run_of("plain", 0.9, dataset="rotated_mnist", tested=50_000)]
    rows.append(run_of("p4 CNN", 0.97, dataset="rotated_mnist", tested=10_000))

    rows.append(run_of("octic ViT", 0.97, dataset="rotated_mnist", tested=50_000))
    for row, turned in zip(rows, (256, 64, 64), strict=True):
        row["turning"]["images"] = turned

    assert "| p4 CNN*° | 1 |" in page.table(rows, "rotated_mnist")
    assert "| octic ViT° | 1 |" in page.table(rows, "rotated_mnist")
    assert "| plain | 1 |" in page.table(rows, "rotated_mnist")


@pytest.mark.parametrize(
    ("prea", "rival", "word"),
    [
        ((0.91, 0.92), (0.90, 0.905), "reached. Best such row: PREA C4, k = 0"),
        ((0.900, 0.910), (0.906, 0.912), "reached. Best such row"),
        ((0.90, 0.901), (0.92, 0.921), "**missed**"),
        ((0.90,), (0.92,), "not to be said from one seed"),
    ],
)
def test_prea_is_judged_against_the_best_row_and_the_seeds_noise(goals, prea, rival, word):
    rows = [run_of("PREA C4, k = 0", value, seed=seed) for seed, value in enumerate(prea)]
    rows += [run_of("p4 CNN", value, seed=seed, flops=5.0) for seed, value in enumerate(rival)]

    assert word in goals.best(rows, "blood")


def test_a_goal_reached_by_one_seed_says_so_and_what_it_cost(goals):
    rows = [run_of("PREA C4, k = 0", 0.91, flops=1.01), run_of("plain", 0.9)]

    said = goals.best(rows, "blood")

    assert "91.00 at 1.01x FLOPs, 1.01x time, best; one seed, so it may be chance." in said


def test_a_prea_row_above_the_cost_limit_does_not_reach_the_goal_for_the_others(goals):
    rows = [run_of("PREA D4", 0.99, flops=3.6), run_of("PREA C4, k = 0", 0.9)]

    assert "PREA C4, k = 0, 90.00 at 1.00x FLOPs, 1.00x time, 9.00 points behind PREA D4" in goals.best(rows, "blood")


@pytest.mark.parametrize(("accuracy", "word"), [(0.905, "reached"), (0.895, "**missed**")])
def test_distillation_is_judged_by_one_point(goals, accuracy, word):
    rows = [run_of("PREA D4", 0.91, flops=3.6), run_of("PREA D4, k = 0, distilled", accuracy)]

    assert f"best PREA row: {word}." in goals.distilled(rows, "blood")


def test_a_distilled_row_that_costs_more_than_the_plain_one_misses(goals):
    rows = [run_of("PREA D4", 0.91, flops=3.6), run_of("PREA D4, k = 0, distilled", 0.91, flops=1.1)]

    assert "best PREA row: **missed**." in goals.distilled(rows, "blood")


@pytest.mark.parametrize(
    ("over", "told"), [(0.0, "reached by all; from 0.0"), (None, "reached by 0 of 1 rows; from inf")]
)
def test_a_ratio_of_nought_is_none_at_all_and_one_over_nought_is_infinite(goals, over, told):
    assert told in goals.worst_angle([run_of("PREA C4", 0.9, over=over)], "blood")


def test_the_worst_angle_is_judged_for_exact_rows_alone(goals):
    rows = [run_of("plain", 0.9, over=9.0), run_of("PREA C4", 0.9, over=1.9), run_of("p4 CNN", 0.9, over=2.1)]

    assert "reached by 1 of 2 rows; from 1.9 (PREA C4) to 2.1 (p4 CNN)" in goals.worst_angle(rows, "blood")


def test_p4_is_judged_by_its_best_row(goals):
    rows = [run_of("p4 CNN", 0.97), run_of("p4 CNN + rotations, twice the epochs", 0.981)]

    assert "reached, 98.10 % (p4 CNN + rotations, twice the epochs)" in goals.p4(rows)


def exactness_row(errors, *, promised=True, dtype="float32"):
    moments = dict(zip(("start", "trained", "averaged", "fused"), errors, strict=True))
    return {
        "family": "ViT", "design": "k = 0", "group": "C4", "size": 32, "promised": promised, "note": "a reason",
        "dtype": dtype, "errors": moments,
    }  # fmt: skip


def test_a_broken_promise_is_bold_and_counted(exactness_page):
    said = exactness_page.report([exactness_row([1e-6, 1e-6, 2e-3, None])])

    assert "float32: 0 of 1 kept, worst 2.0e-03" in said
    assert "| 1e-06 | 1e-06 | **2e-03** | - |" in said


def test_rows_that_promise_nothing_are_shown_apart_with_their_reason(exactness_page):
    said = exactness_page.report([exactness_row([3.0, 3.0, 3.0, 3.0], promised=False, dtype="float64")])

    assert "No row promises exactness." in said
    assert "- a reason: ViT k = 0 C4" in said


@pytest.mark.parametrize(("errors", "status"), [([1e-6, 1e-6, 1e-6, None], 0), ([1e-6, 2e-4, 1e-6, 1e-6], 1)])
def test_the_exactness_command_fails_where_a_promise_is_broken(load_from, tmp_path, monkeypatch, errors, status):
    exactness = load_from(FOLDER, "exactness")
    (tmp_path / "page.json").write_text(json.dumps([exactness_row(errors)]))
    monkeypatch.setattr(sys, "argv", ["exactness.py", "--from-json", "--out", str(tmp_path / "page")])

    with pytest.raises(SystemExit) as ended:
        exactness.main()

    assert ended.value.code == status
    assert (tmp_path / "page.md").read_text().startswith("# Exactness")


def test_a_model_that_could_not_be_made_breaks_its_promise(load_from):
    exactness = load_from(FOLDER, "exactness")

    assert not exactness.kept_promise(exactness_row([None] * 4))


def test_every_posthoc_cell_is_planned_and_the_plain_model_trained_on_is_beside_them(load_from):
    planned = [trial for trial in load_from(FOLDER, "posthoc").trials(3) if trial.seed == 0]

    cells = {(trial.experiment.name, trial.aggregation, trial.group, trial.trained) for trial in planned}
    learned_untrained = 4 * 2 * 2
    assert len(cells) == len(planned) == 4 * (7 * 4 + 2) - learned_untrained


def test_posthoc_cells_that_were_not_run_are_dashes(load_from):
    told = load_from(FOLDER, "posthoc_page")
    row = {"experiment": "a tenth of the data", "aggregation": "mean", "group": "C4", "trained": "none", "seed": 0}
    plain = {**row, "aggregation": "plain", "group": "C1", "accuracy": 0.5, "balanced_accuracy": 0.5}

    said = told.report({"planned": 9, "runs": [plain, {**row, "accuracy": 0.6, "balanced_accuracy": 0.6}]})

    assert "**Not finished: 2 of 9 cells are here**" in said
    assert "The plain model: 50.0; trained on as *all* is: -." in said
    assert "| mean | 60.0 | - | - |" in said


@pytest.mark.parametrize("name", COMMITTED)
def test_the_committed_page_is_what_its_committed_json_prints(load_from, name):
    told = json.loads((RESULTS / f"{name}.json").read_text())
    module = load_from(FOLDER, PAGES[name])

    said = module.report(told["runs"], told["seeds"]) if name == "equivariance" else module.report(told)

    assert said == (RESULTS / f"{name}.md").read_text()


def test_cost_is_compared_with_the_plain_backbone_as_its_own_row_sees_the_images(cases):
    named = {(case.dataset, case.row.name): case for case in cases.cases(cases.DATASETS, 1)}
    mine = named["dermoscopy", "PREA C4 on ResNet-8, regular fields"].plain().row
    assert (mine.name, mine.backbone, mine.image_size) == ("plain ResNet-8", "study_resnet8", 33)
    assert named["blood", "PREA D4"].plain().row.name == "plain"
    assert named["blood", "p4 CNN"].plain().row.backbone == ""

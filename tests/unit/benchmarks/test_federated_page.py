"""The federated study's page is what its JSON says, and goes on from it where the runs are lost."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "docs" / "results"


@pytest.fixture
def study(load_from):
    return load_from("federated", "study")


@pytest.fixture
def told():
    return json.loads((RESULTS / "federated.json").read_text())


def test_the_page_is_printed_from_its_json(study, told):
    assert study.markdown(told["runs"]) == (RESULTS / "federated.md").read_text()


def test_rows_of_cases_described_as_they_were_count_as_run(study, told, tmp_path):
    changed = copy.deepcopy(told)
    changed["cases"]["opm 5 x 4"]["rounds"] = 3

    study.keep(changed, tmp_path)

    row = next(row for row in told["runs"] if row["case"] == "fedavg 5 x 4")
    same = study.finished(("fedavg 5 x 4", row["seed"]), tmp_path, kept_only=True)
    assert {name: same[name] for name in row} == row
    assert study.finished(("opm 5 x 4", 0), tmp_path, kept_only=True) is None


def test_a_run_that_is_there_is_not_overwritten_by_the_json(study, told, tmp_path):
    study.keep(told, tmp_path)
    kept = next(tmp_path.iterdir())
    kept.write_text('{"val_auroc": 0.5}\n')

    study.keep(told, tmp_path)

    assert json.loads(kept.read_text()) == {"val_auroc": 0.5}

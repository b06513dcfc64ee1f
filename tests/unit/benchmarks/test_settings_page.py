"""The page of rivals' settings: what is called better, what is told of a refusal, and whom OPM is compared with."""

import importlib.util
from pathlib import Path

import pytest

_PATH = Path(__file__).parents[3] / "benchmarks" / "oneshot" / "settings_page.py"


@pytest.fixture(scope="module")
def told():
    spec = importlib.util.spec_from_file_location("settings_page", _PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(setting, accuracy, parents, role=None):
    found = {"architecture": "net", "n": 2, "parents": parents, "rival": "R", "looks": "weights", "setting": setting}
    loss = None if accuracy is None else 1 - accuracy
    found |= {"split": "test" if role else "val", "accuracy": accuracy, "loss": loss}
    return found | ({"role": role} if role else {})


def rows(gains):
    tried = [row("plain", 0.4, ["a", "b"]), row("strong", 0.5, ["a", "b"]), row("broken", None, ["a", "b"])]
    for case, gain in enumerate(gains):
        parents = [f"c{case}", f"d{case}"]
        tried += [row("plain", 0.5, parents, "default"), row("strong", 0.5 + gain, parents, "chosen")]
    return tried


def test_a_setting_that_is_better_in_every_case_is_called_so(told):
    assert "**R: strong is better in every case** (median gain +0.020)" in told.page(rows([0.01, 0.02, 0.03]), [], "")


def test_one_case_that_is_no_better_is_enough_not_to_call_it_so(told):
    said = told.page(rows([0.1, 0.0, 0.3]), [], "")

    assert "No chosen setting is better than the default in every case" in said
    assert "| 0.500 (0.500 to 0.500) | 0.600 (0.500 to 0.800) | +0.100 (+0.000 to +0.300) |" in said


def test_a_refused_setting_is_told_and_never_chosen(told):
    said = told.page(rows([0.1]), [], "")

    assert "plain 0.400 (0.600); strong 0.500 (0.500); broken refused" in said
    assert "| R | weights | plain | strong |" in said


def test_opm_is_taken_from_the_study_for_the_very_cases_that_are_told(told):
    study = [
        {"dataset": "blood", "architecture": "net", "n": 2, "method": "OPM", "side": "opm", "looks": "weights"}
        | {"parents": parents, "accuracy": accuracy}
        for parents, accuracy in ((["c0", "d0"], 0.9), (["a", "b"], 0.1))
    ]

    said = told.page(rows([0.1]), study, "")

    assert "best rival at its chosen setting R 0.600; OPM 0.900" in said


def test_the_page_says_with_which_options_it_was_printed(told):
    assert "settings.py --fours 3 --out docs/results/settings" in told.page(rows([0.1]), [], " --fours 3")

"""The server's memory does not grow with the number of sites (docs/operate.md)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "support" / "round_memory.py"
# What is let go of goes back to the system at once: the process's size is then what is in use.
PLAIN = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}


def measured(case: str) -> tuple[dict[str, int], int]:
    """Return the peak of a round of 4 and of 16 sites, and what a model weighs, in bytes."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), case, "4", "16"],
        env={**os.environ, **PLAIN, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    return told["peaks"], told["model"]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["average", "control variates", "matched at the server", "rule that matches", "gate"])
def test_a_round_of_sixteen_sites_takes_no_more_than_a_model_more_than_one_of_four(case):
    peaks, model = measured(case)
    # Twelve further sites would be twelve models, were they held. One is the slack of pages and of Python's own heap.
    assert peaks["16"] - peaks["4"] <= model


@pytest.mark.slow
def test_a_median_holds_one_tensor_of_every_site_and_not_its_model():
    peaks, model = measured("median")
    # Copies in float64, stacked and sorted: for every site a few times the largest tensor, a fortieth of the model.
    assert peaks["16"] - peaks["4"] <= 4 * model

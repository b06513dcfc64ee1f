"""What the page of LEE's orderings says of its results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[3] / "docs" / "results"


@pytest.fixture
def orderings(load_from):
    return load_from("equivariance", "lee_orderings")


def _rows(lee, share):
    kinds = {"patch embedding": share, "norm": 1 - share, "downsampling": share}
    generators = ("translation", "rotation")
    return [
        {"net": net, "epochs": epochs, "accuracy": 0.5, "by_kind": dict.fromkeys(generators, kinds),
         "lee": {g: {"value": value, "lower": value, "upper": value} for g in generators}}
        for net in ("popmi_vit_64", "popmi_resnet20") for epochs, value in zip((0, 1, 3, 8), lee, strict=True)
    ]  # fmt: skip


def test_the_committed_page_is_that_of_the_committed_figures(orderings):
    found = json.loads((RESULTS / "lee_orderings.json").read_text())
    assert (RESULTS / "lee_orderings.md").read_text() == orderings.page(found)
    assert found["claims"] == orderings.claims(found["rows"])


def test_a_claim_shows_only_if_every_step_does(orderings):
    falling = orderings.claims(_rows((9, 3, 2, 1), 0.6))
    rising = orderings.claims(_rows((9, 3, 1, 2), 0.6))
    assert [claim["shows"] for claim in falling] == [True] * 6
    assert not any(claim["shows"] for claim in rising[2:])

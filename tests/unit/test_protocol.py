"""What crosses the wire besides tensors."""

from __future__ import annotations

import pytest

from popmi_core.errors import UpdateError
from popmi_core.protocol import Report, derive_seed, parse_report


def test_a_report_survives_the_wire():
    report = Report(run="r", server_round=3, site="a", metrics={"val.auroc": None, "val.nll": 0.1})
    assert parse_report(report.model_dump_json(), site="a") == report


@pytest.mark.parametrize("text", [None, b"{}", 3])
def test_a_reply_without_a_report_is_refused(text):
    with pytest.raises(UpdateError, match="holds no report"):
        parse_report(text, site="a")


def test_an_unreadable_report_names_the_fields_and_not_their_values():
    text = '{"run": "r", "server_round": "patient 7", "site": "a"}'
    with pytest.raises(UpdateError, match="fields: server_round") as caught:
        parse_report(text, site="a")
    assert "patient" not in str(caught.value)


def test_seeds_depend_on_every_part_and_on_nothing_else():
    assert derive_seed("train", 0, "a", 1) == derive_seed("train", 0, "a", 1)
    assert len({derive_seed("train", s, site, r) for s in (0, 1) for site in "ab" for r in (1, 2)}) == 8
    # A golden value: another Python or machine must draw the same numbers.
    assert derive_seed("train", 0, "rosendahl", 1) == 2724239361878393971

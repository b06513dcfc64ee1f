"""What crosses the wire besides tensors."""

from __future__ import annotations

import json

import pytest

from popmi_core.errors import UpdateError
from popmi_core.protocol import MAX_EXAMPLES, MAX_REASON, MAX_REPORT, METRIC_NAMES, Report, derive_seed, parse_report


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


SHARES = {"total_variation": [0.0, 0.5], "flips": [0.0, 0.25], "accuracy": [1.0, 0.75]}
TURNED = {"num_images": 9, "figures": SHARES, "floor": SHARES}


def told(**fields) -> str:
    return json.dumps({"run": "r", "server_round": 1, "site": "a", **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"num_examples": MAX_EXAMPLES},
        {"metrics": dict.fromkeys(METRIC_NAMES, 0.5)},
        {"gains": {"blocks.0.attn": None}, "identity": {"blocks.0.attn": True}},
        {"error": "line\nline " + "x" * (MAX_REASON - 10)},
        {"split_sizes": {"train": 3, "val": 0, "test": MAX_EXAMPLES}, "epsilon": 0.0},
        {"angles": {"stream": 90.0}, "moved": {"mlp": 3}, "units": {"mlp": 64, "stream": 32}},
        {"popmi": "0.1.0", "class_table": {"train": [7, None]}, "confusion": {"val": [[9, None], [None, None]]}},
        {"turned": TURNED},
        {"turned": {**TURNED, "layers": [{"name": "norm (own)", "kind": "norm", "value": 0.25}], "lee_images": 5}},
    ],
)
def test_what_a_report_may_hold_is_taken(fields):
    assert parse_report(told(**fields), site="a").site == "a"


@pytest.mark.parametrize(
    "fields",
    [
        {"num_examples": 3_000_000_000},
        {"num_examples": 2**63},
        {"num_examples": -1},
        {"server_round": -1},
        {"server_round": 10**9},
        {"skipped_rows": 10**12},
        {"class_counts": [1, 10**12]},
        {"split_sizes": {"val": 10**12}},
        {"split_sizes": {"patients": 1}},
        {"metrics": {"val.patient 7": 0.5}},
        {"metrics": {"val." + "x" * 61: 0.5}},
        {"metrics": {"val.nll": 10**400}},
        {"gains": {"w" * 201: 0.5}},
        {"gains": {"w\x00": 0.5}},
        {"gains": {f"w{i}": 0.5 for i in range(10_001)}},
        {"identity": {"w\n": True}},
        {"site": ""},
        {"site": "a\x00"},
        {"run": "r" * 201},
        {"nonce": "n" * 65},
        {"error": "e" * (MAX_REASON + 1)},
        {"match_note": "e" * (MAX_REASON + 1)},
        {"seconds": -1},
        {"seconds": 10**12},
        {"epsilon": -0.5},
        {"angles": {"stream": 200.0}},
        {"angles": {"w" * 201: 5.0}},
        {"moved": {"mlp": -1}},
        {"units": {f"w{i}": 5 for i in range(10_001)}},
        {"popmi": "1" * 41},
        {"popmi": "<b>"},
        {"class_table": {"patients": [7]}},
        {"class_table": {"val": [-7]}},
        {"confusion": {"val": [[10**12]]}},
        {"confusion": {"val": [[7]] * 101}},
        {"turned": {**TURNED, "num_images": 4}},
        {"turned": {**TURNED, "patient": 7}},
        {"turned": {**TURNED, "note": "n" * 401}},
        {"turned": {**TURNED, "figures": {**TURNED["figures"], "flips": [1.5]}}},
        {"turned": {**TURNED, "floor": {**TURNED["floor"], "accuracy": [0.5] * 361}}},
        {"turned": {**TURNED, "layers": [{"name": "a\n", "kind": "norm", "value": 1}]}},
        {"turned": {**TURNED, "layers": [{"name": "a", "kind": "norm", "value": -1}]}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_the_record_cannot_hold_is_refused_by_its_field_alone(fields):
    (field,) = fields
    with pytest.raises(UpdateError, match=rf"^site a: unreadable report \(fields: {field}: ") as caught:
        parse_report(told(**fields), site="a")
    assert len(str(caught.value)) < 500
    assert "patient" not in str(caught.value)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["seconds", "epsilon"])
def test_a_figure_that_is_no_number_is_refused(field, value):
    text = f'{{"run": "r", "server_round": 1, "site": "a", "{field}": {value}}}'
    with pytest.raises(UpdateError, match=f"fields: {field}: "):
        parse_report(text, site="a")


def test_of_many_wrong_fields_three_are_named_and_no_word_of_the_site_s_own():
    fields = {"num_examples": -1, "skipped_rows": -1, "seconds": -1, "site": "", "patient": 7}
    with pytest.raises(UpdateError, match=r" and 2 more\)\. Check that the site") as caught:
        parse_report(told(**fields), site="a")
    assert "patient" not in str(caught.value)


def test_a_report_of_any_length_is_not_even_read():
    with pytest.raises(UpdateError, match=f"the report has 1000042 letters, expected at most {MAX_REPORT}"):
        parse_report("x" * (MAX_REPORT + 42), site="a")


def test_seeds_depend_on_every_part_and_on_nothing_else():
    assert derive_seed("train", 0, "a", 1) == derive_seed("train", 0, "a", 1)
    assert len({derive_seed("train", s, site, r) for s in (0, 1) for site in "ab" for r in (1, 2)}) == 8
    # A golden value: another Python or machine must draw the same numbers.
    assert derive_seed("train", 0, "rosendahl", 1) == 2724239361878393971

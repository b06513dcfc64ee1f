"""The comparison of ways between server and site: what is changed back, and its page; nothing is started here."""

from __future__ import annotations

import pytest


@pytest.fixture
def transport(load_from):
    return load_from("federation", "transport")


def test_every_change_is_still_where_it_is_looked_for(transport, tmp_path):
    for number, changes in enumerate(transport.WAYS.values()):
        tree = transport.changed_tree(tmp_path / str(number), changes)
        for name, new, old in changes:
            text = (tree / name).read_text()
            assert (text.count(new), old in text) == (0, True)


def test_a_change_that_is_not_there_is_an_error(transport, tmp_path):
    with pytest.raises(ValueError, match="is there 0 times, expected once"):
        transport.changed_tree(tmp_path / "tree", (("server/exchange.py", "no such text", ""),))


def test_the_page_leaves_the_first_round_out_and_keeps_models_together(transport):
    rows = [
        {"way": way, "model": model, "megabytes": 0.1, "seconds": [60.0, 4.0, 5.0, 9.0], "whole_run": 80.0}
        for way in transport.WAYS
        for model in transport.MODELS
    ]
    lines = transport.report({"sites": 3, "rounds": 4, "cores": 2, "load": 0.1, "rows": rows}).splitlines()
    table = [line for line in lines if line.startswith("| ") and "---" not in line][1:]
    assert [line.split(" | ")[0].strip("| ") for line in table] == ["popmi_vit_micro"] * 3 + ["resnet18"] * 3
    assert table[0].endswith("| 5.0 | 4.0 | 9.0 | 80 |")


def test_the_page_says_what_really_differs_between_its_rows(transport):
    plain, block, own = (set(changes) for changes in transport.WAYS.values())
    assert plain - block == {transport.PLAIN}
    assert block - own == {transport.SELDOM, transport.FLOWERS_SUPERLINK}
    page = transport.report({"sites": 3, "rounds": 4, "cores": 2, "load": 0.1, "rows": []})
    assert "the third from the second by two changes together" in " ".join(page.split())

"""Parts of a run's page by themselves: which round and scope they show, what is worst, how a picture says it."""

from __future__ import annotations

import numpy as np
import pytest

from server.dashboard.attendance import attendance_of, cells_of, costs_of
from server.dashboard.blocks import Block, SiteTable
from server.dashboard.exports import leaves
from server.dashboard.formats import share
from server.dashboard.looks import Told, match_table, told_of
from server.dashboard.pictures import bar, diagram, heat, largest, ribbon
from server.dashboard.rotation import rotation_charts
from server.dashboard.words import OUTCOMES, said, word
from server.store import DetailRow, MatchRow

FLOOR = {"total_variation": [0.0, 0.01], "flips": [0.0, 0.0], "accuracy": None}


def turned(change: float, *, floor: bool = False, accuracy: list[float] | None = None) -> dict[str, object]:
    return {
        "angles": [0, 45],
        "num_images": 9,
        "total_variation": [0.0, change],
        "flips": [0.0, change / 2],
        "accuracy": accuracy,
        "floor": FLOOR if floor else None,
    }


def site_row(number: int, site: str, phase: str = "train", outcome: str = "ok", **more: object) -> tuple[object, ...]:
    known = (
        dict.fromkeys(("reason", "num_examples", "seconds", "bytes_up", "bytes_down", "epsilon", "train_loss")) | more
    )
    return (number, site, phase, outcome, *known.values())


def test_turned_images_have_a_floor_and_a_worst_site() -> None:
    told = Told("rotation", 4, "val", turned(0.2, floor=True), {"a": turned(0.1), "b": turned(0.3)})
    charts = {chart.id: chart for chart in rotation_charts(told, {"a": 1, "b": 2, "global": 0})}
    assert set(charts) == {"rotation-total_variation", "rotation-flips"}
    change = charts["rotation-total_variation"]
    assert change.worst == "b"
    assert [line.scope for line in change.lines] == ["global", "a", "b", "floor"]
    assert change.lines[-1].values == (0.0, 0.01)


def test_for_accuracy_the_worst_site_is_the_lowest() -> None:
    sites = {"a": turned(0.1, accuracy=[0.9, 0.8]), "b": turned(0.1, accuracy=[0.9, 0.7])}
    charts = {chart.id: chart for chart in rotation_charts(Told("rotation", 4, "val", None, sites), {})}
    assert charts["rotation-accuracy"].worst == "b"


def test_details_of_another_split_are_taken_where_the_asked_one_is_not_there() -> None:
    rows = [DetailRow(3, scope, split, "calibration", {}) for split in ("test", "val") for scope in ("global", "a")]
    assert told_of([], "val") is None
    for asked, got in (("test", "test"), ("train", "val"), (None, "val")):
        told = told_of(rows, asked)
        assert told is not None
        assert (told.split, list(told.sites)) == (got, ["a"])


def test_a_scope_that_told_nothing_is_the_global_one_or_the_first_site() -> None:
    told = Told("confusion", 1, "val", {"n": 1}, {"a": {"n": 2}})
    assert told.of("a") == ("a", {"n": 2})
    assert told.of("nobody") == ("global", {"n": 1})
    assert Told("confusion", 1, "val", None, {"a": {"n": 2}}).of(None) == ("a", {"n": 2})
    assert Told("confusion", 1, "val", None, {}).of(None) is None


def test_a_table_of_matching_knows_its_measures() -> None:
    rows = [MatchRow(2, "a", "x", -0.4, False, None, moved=3, units=8), MatchRow(1, "a", "y", 0.9, False, None)]
    table = match_table(rows)
    assert table is not None
    assert (table.server_round, [name for name, _ in table.rows]) == (2, ["x"])
    assert (table.most("gain"), table.most("moved"), table.most("angle")) == (0.4, 3.0, 0.0)
    assert (table.has("moved"), table.has("angle")) == (True, False)


def test_attendance_tells_spells_of_trouble_and_counts() -> None:
    rows = [
        site_row(1, "a"), site_row(1, "a", "evaluate", "late"), site_row(2, "a", outcome="late"),
        site_row(3, "a", outcome="failed"), site_row(4, "a"),
    ]  # fmt: skip
    table = SiteTable().grown(rows, 0)
    item, nobody = attendance_of(table, ("a", "b"))
    assert item.spells == ((1, 2, "late"), (3, 3, "failed"))
    assert item.counts == {"ok": 1, "late": 2, "failed": 1}
    assert nobody.counts == {}
    assert cells_of(table, (1, 9))["a"][1].phase == "evaluate"


def test_a_site_without_rows_costs_nothing_and_keeps_its_limit() -> None:
    (cost,) = costs_of(SiteTable(), ("a",), {}, 8.0)
    assert (cost.rounds_all, cost.bytes_up, cost.epsilon_limit, cost.spent) == (0, None, 8.0, None)
    table = SiteTable().grown([site_row(1, "a", epsilon=2.0, bytes_up=5), site_row(2, "a", epsilon=3.0, bytes_up=6)], 0)
    (cost,) = costs_of(table, ("a",), {"a": {"epsilon_limit": 6.0}}, 8.0)
    assert (cost.epsilon, cost.epsilon_limit, cost.spent, cost.bytes_up) == (3.0, 6.0, 0.5, 11)


def test_a_block_grows_without_losing_what_it_had() -> None:
    first = Block().grown({"a": [(1, 0.5), (2, None)]}, 0, 2)
    second = first.grown({"a": [(3, 0.7)], "b": [(3, 0.1)]}, 3, 3)
    assert second.scopes == ("a", "b")
    assert second.present.tolist() == [False, True, True, True]
    np.testing.assert_equal(second.values[0], [np.nan, 0.5, np.nan, 0.7])
    np.testing.assert_equal(second.values[1], [np.nan, np.nan, np.nan, 0.1])


def test_shades_and_bars_follow_the_largest_and_below_zero_is_said() -> None:
    assert heat(None, 1.0) == heat(0.5, 0.0) == ""
    assert heat(1.0, 1.0) == "heat8"
    assert heat(-0.5, 1.0) == "heat4 below"
    assert 'width="50.0"' in bar(1.0, 2.0)
    assert "over" in bar(3.0, 2.0, limit=2.5)
    assert "mark" in bar(1.0, 2.0, limit=1.5)
    assert bar(None, 2.0) == ""
    assert largest([[1.0, None], [-3.0]]) == 3.0


def test_a_reliability_diagram_leaves_empty_bins_out_and_draws_bounds() -> None:
    full = {"confidence": 0.8, "accuracy": 0.7, "lower": 0.6, "upper": 0.9, "count": 40}
    empty = {"confidence": 0.2, "accuracy": None, "lower": None, "upper": None, "count": 0}
    drawing = diagram({"bins": [full, empty, {**full, "lower": None}]}, '"quoted"')
    assert drawing.count("<circle") == 2
    assert drawing.count("whisker") == 1
    assert "&#34;quoted&#34;" in drawing
    assert "<circle" not in diagram({}, "nothing")


def test_a_ribbon_is_taller_for_worse_trouble() -> None:
    table = SiteTable().grown([site_row(1, "a", outcome="late"), site_row(2, "a", outcome="quarantined")], 0)
    (item,) = attendance_of(table, ("a",))
    drawing = ribbon(item, 2, "a")
    assert 'class="late" x="0" y="6"' in drawing
    assert 'class="quarantined" x="1" y="0"' in drawing
    assert ribbon(item, 0, "a") == ""


def test_what_is_said_is_translated_with_what_it_is_said_of() -> None:
    fault = said("site %(site)s %(outcome)s", site="100 %", outcome=word("late", OUTCOMES))
    chinese = {"site %(site)s %(outcome)s": "%(outcome)s:%(site)s", "late": "遲"}
    assert str(fault) == "site 100 % late"
    assert fault.speak(lambda text: chinese.get(text, text)) == "遲:100 %"
    assert str(word("never heard", OUTCOMES)) == "never heard"


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.0, "0.0 %"), (0.0004, "< 0.1 %"), (0.1234, "12.3 %"), (1.5, "150.0 %")]
)
def test_a_share_is_written_for_people(value: float | None, text: str) -> None:
    assert share(value) == text


def test_leaves_of_a_plain_value_have_no_place() -> None:
    assert list(leaves(3)) == [("", 3)]

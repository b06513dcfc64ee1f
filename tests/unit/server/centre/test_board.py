"""The board: what the keeper last saw, by subject (server/centre/board.py)."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from popmi_core.errors import RunError
from server.centre import open_centre
from server.centre.board import card_key, kit_key, read_board, touch_board, write_board


@pytest.fixture
def centre(database):
    engine = open_centre(database)
    yield engine
    engine.dispose()


def test_what_has_changed_is_written_and_what_has_not_is_only_seen_anew(centre):
    assert read_board(centre, "sites") is None
    assert write_board(centre, "sites", [{"name": "basel", "since": 1.5}], clock=lambda: 10.0)
    assert not write_board(centre, "sites", [{"name": "basel", "since": 1.5}], clock=lambda: 20.0)
    assert read_board(centre, "sites").time == 20.0
    touch_board(centre, "sites", clock=lambda: 30.0)
    notice = read_board(centre, "sites")
    assert (notice.value, notice.time) == ([{"name": "basel", "since": 1.5}], 30.0)
    assert write_board(centre, "sites", [], clock=lambda: 40.0)
    assert read_board(centre, "sites").value == []


def test_news_are_old_after_a_minute(centre):
    write_board(centre, "status", {"a": (1, 2)}, clock=lambda: 100.0)
    notice = read_board(centre, "status")
    assert notice.value == {"a": [1, 2]}
    assert not notice.stale(159.0)
    assert notice.stale(161.0)


def test_subjects_of_cards_and_kits_fit_their_column():
    assert len(card_key("a" * 64)) <= 60
    assert len(kit_key("x" * 63)) <= 60
    assert kit_key("a") != kit_key("b")


def test_a_board_out_of_reach_is_told(centre):
    with centre.begin() as connection:
        connection.execute(text("DROP TABLE board"))
    for act in (lambda: write_board(centre, "plan", 1), lambda: read_board(centre, "plan"),
                lambda: touch_board(centre, "plan")):  # fmt: skip
        with pytest.raises(RunError, match=r"centre: cannot .* plan on the board"):
            act()

"""The drill's tables, its order of kills, its small disks and the broken site's timetable; nothing is started here."""

from __future__ import annotations

import pytest


@pytest.fixture
def drill(load_from):
    return load_from("faults", "drill")


@pytest.fixture
def kills(load_from):
    return load_from("faults", "kills")


def row(case, **changes):
    told = {"case": case, "what": "fault", "done": "this", "seen": "that | there", "went_on": "yes", "good": True}
    return {**told, **changes}


def test_the_drill_s_table_is_in_the_order_of_cases_and_counts_what_went_wrong(drill):
    page = drill.report({"late": [row("11"), row("database")], "early": [row("2", good=False)]})
    assert "2 of 3 lines ended as they should" in page
    table = [line for line in page.splitlines() if line.startswith("| ")][2:]
    assert [line.split(" | ")[0] for line in table] == ["| 2", "| 11", "| database"]
    assert "**NO**" in table[0]
    assert "that / there" in table[1]


def test_what_a_scene_notes_is_cut_and_names_no_folder(drill, tmp_path):
    stage = load_stage(drill, tmp_path)
    stage.note("1", "fault", "done", f"{tmp_path}/federation/x " + "long " * 200, "yes", good=True)
    (found,) = stage.rows
    assert str(tmp_path) not in found.seen
    assert len(found.seen) <= 420


def test_a_scene_that_breaks_off_is_a_line_that_is_not_good(drill, tmp_path):
    stage = load_stage(drill, tmp_path)

    def breaks():
        raise OSError("no room")

    stage.attempt("20", "disk full", breaks)
    assert [(item.case, item.good) for item in stage.rows] == [("20", False)]
    assert "no room" in stage.rows[0].seen


def load_stage(drill, folder):
    return drill.Stage(drill.Machine(folder / "federation", {}))


def test_every_payload_fault_is_sent_once_by_one_of_two_sites(load_from):
    broken = load_from("faults", "broken_site")
    rounds = range(1, 2 + len(broken.FAULTS) // 2)
    sent = [broken.place_of(site, number) for number in rounds for site in broken.BROKEN]
    assert [place for place in sent if place is not None] == list(range(len(broken.FAULTS)))
    assert broken.place_of("phantom_slide", 1) is None
    assert {case for case, _, _ in broken.FAULTS} == {str(number) for number in range(1, 12)}


def test_every_payload_fault_has_words_by_which_it_is_known(load_from):
    payloads = load_from("faults", "payloads")
    assert {case for case, _, _ in payloads.FAULTS} == set(payloads.SAID)


def test_the_broken_tree_ends_in_the_broken_app(drill, tmp_path, load_from):
    tree = drill.broken_tree(tmp_path / "tree")
    assert (tree / "client" / "app.py").read_text().endswith("app = Broken(app)\n")
    assert (tree / "client" / "broken_site.py").exists()
    assert (tree / "server" / "app.py").exists()


def test_every_part_is_killed_equally_often_and_the_seed_gives_the_order(kills):
    order = kills.order(20, 0)
    assert sorted(order) == sorted([*kills.PARTS] * 2)
    assert order == kills.order(20, 0)
    assert order != kills.order(20, 1)


def test_the_page_of_kills_tells_medians_worst_and_what_never_came_back(kills):
    rows = [
        {"part": "gateway", "seconds": 3.0, "lost": 0, "again": False},
        {"part": "gateway", "seconds": 5.0, "lost": 0, "again": False},
        {"part": "superlink", "seconds": 40.0, "lost": 1, "again": True},
        {"part": "superlink", "seconds": None, "lost": None, "again": None},
    ]
    head = {"seed": 0, "count": 4, "sites": 2, "cores": 2, "load": 1.0, "load_end": 1.0, "usual": 2.0, "rows": rows}
    page = kills.report({**head, "rounds": 9, "first_difference": None, "missed": []})
    assert "| gateway | 2 | 0 | 4.0 s | 5.0 s | 0 |" in page
    assert "| SuperLink | 2 | 1 | 40.0 s | 40.0 s, 1 never | 1 |" in page
    assert "All 9 rounds' models are those of the undisturbed run, bit for bit." in page


@pytest.mark.parametrize(("missed", "said"), [([4], "had no answer in round 4"), ([7], "not explained")])
def test_a_model_that_differs_is_explained_by_a_site_that_was_missing_or_not_at_all(kills, missed, said):
    assert said in kills.verdict({"rounds": 9, "first_difference": 5, "missed": missed})

"""The drill's tables, its order of kills, its small disks and the broken site's timetable; nothing is started here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest


@pytest.fixture
def drill(load_from):
    return load_from("faults", "drill")


@pytest.fixture
def kills(load_from):
    return load_from("faults", "kills")


def row(case, **changes):
    told = {
        "case": case, "what": "fault", "done": "this", "seen": "that | there", "went_on": "yes", "good": True,
        "audit": "server: it.happened",
    }  # fmt: skip
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
    seen = f"{tmp_path}/federation/x " + "long " * 200
    stage.note("1", "fault", "done", seen, "yes", good=True, audit=None)
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
        {"part": "gateway", "seconds": 3.0, "lost": 0, "again": False, "without": [], "trained_seconds": 6.0},
        {"part": "gateway", "seconds": 5.0, "lost": 0, "again": False, "without": [4, 5], "trained_seconds": 8.0},
        {"part": "superlink", "seconds": 40.0, "lost": 1, "again": True, "without": [6, 7, 8], "trained_seconds": None},
        {"part": "superlink", "seconds": None, "lost": None, "again": None},
    ]
    head = {"seed": 0, "count": 4, "sites": 2, "cores": 2, "load": 1.0, "load_end": 1.0, "usual": 2.0, "rows": rows}
    page = kills.report({**head, "rounds": 9, "first_difference": None, "missed": []})
    assert "| gateway | 2 | 0 | 4.0 s | 5.0 s | 0 | 2 | 7.0 s | 8.0 s |" in page
    assert "| SuperLink | 2 | 1 | 40.0 s | 40.0 s, 1 never | 1 | 3 | never | 1 never |" in page
    assert "All 9 rounds' models are those of the undisturbed run, bit for bit." in page


@pytest.mark.parametrize(("missed", "said"), [([4], "had no answer in round 4"), ([7], "not explained")])
def test_a_model_that_differs_is_explained_by_a_site_that_was_missing_or_not_at_all(kills, missed, said):
    assert said in kills.verdict({"rounds": 9, "first_difference": 5, "missed": missed})


def test_the_page_of_kills_says_which_rounds_were_made_without_a_site_and_how_many_on_end(kills):
    said = kills.missed_rounds({"rounds": 50, "missed": [8, 11, 12, 13, 22]})
    assert "5 of 50 rounds were made without a site, at most 3 on end (8, 11, 12, 13, 22)" in said
    assert kills.missed_rounds({"rounds": 50, "missed": []}) == "All 50 rounds were made with every site."


def test_kills_of_an_earlier_study_say_that_the_training_was_not_looked_at(kills):
    old = {"part": "keeper", "seconds": 3.0, "lost": 0, "again": False}
    assert kills.line("keeper", [old]).endswith("| 0 | not measured | not measured | not measured |")


def round_row(number, started, finished):
    return SimpleNamespace(server_round=number, started=started, finished=finished)


def site_row(number, site, outcome="ok"):
    return SimpleNamespace(server_round=number, site=site, outcome=outcome)


def test_a_site_trains_again_in_the_first_whole_round_that_was_begun_after_the_kill(kills):
    rounds = [round_row(number, 10.0 * number, 10.0 * number + 9.0) for number in (4, 5, 6, 7)]
    trained = [site_row(number, kills.GOOD) for number in (4, 6)] + [site_row(5, kills.GOOD, "unreachable")]
    trained += [site_row(number, kills.BAD) for number in (4, 5, 6)]
    # Round 4 was in flight at second 45: what it holds may be from before the kill.
    assert kills.without(rounds, trained, 45.0) == {"without": [5], "trained_seconds": 24.0}


def test_a_site_that_stays_away_trains_never_again_and_an_open_round_counts_for_nothing(kills):
    rounds = [round_row(5, 50.0, 59.0), round_row(6, 60.0, None)]
    trained = [site_row(5, kills.BAD)]
    assert kills.without(rounds, trained, 45.0) == {"without": [5], "trained_seconds": None}


def test_a_line_tells_the_audit_events_that_were_found_since_the_mark(drill, tmp_path):
    stage = load_stage(drill, tmp_path)
    stage.machine.home.note("site.revoked", site="north")
    assert stage.event("site.revoked", site="north", wait=0.0) == "server: site.revoked"
    assert stage.event("site.revoked", site="south", wait=0.0) == ""
    assert stage.event("site.revoked", says="south", wait=0.0) == ""
    stage.mark()
    assert stage.event("site.revoked", site="north", wait=0.0) == ""


def test_events_of_a_site_are_looked_for_in_its_own_log(drill, tmp_path):
    stage = load_stage(drill, tmp_path)
    home = stage.machine.site("north")
    home.audit.append("server.unreachable", why={"certificate name": "other"})
    assert stage.event("server.unreachable", at=home, says="certificate name", wait=0.0) == "site: server.unreachable"
    assert stage.event("server.unreachable", wait=0.0) == ""
    stage.mark()
    assert stage.event("server.unreachable", at=home, wait=0.0) == ""


@pytest.mark.parametrize(
    ("audit", "shown"), [(["", "server: a"], "server: a"), (["site: b", "server: a"], "site: b, server: a"),
                         ([""], "none"), ([], "none"), (None, "-")],
)  # fmt: skip
def test_a_fault_that_no_log_tells_of_says_none_and_what_is_no_fault_says_nothing(drill, tmp_path, audit, shown):
    stage = load_stage(drill, tmp_path)
    stage.note("1", "fault", "done", "seen", "yes", good=True, audit=audit)
    assert stage.rows[0].audit == shown


def test_the_drill_s_page_counts_faults_that_no_audit_event_tells_of_and_names_their_cases(drill):
    rows = [row("2"), row("20", audit="none"), row("gateway", audit="none"), row("12", audit="-")]
    page = drill.report({"scene": rows})
    assert "An audit event tells of 1 of 3 faults (none: case 20, gateway)." in page
    assert "| yes | server: it.happened | yes |" in page


def test_the_page_of_a_drill_before_audit_events_says_that_they_were_not_looked_for(drill):
    old = row("2")
    del old["audit"]
    page = drill.report({"scene": [old]})
    assert "Audit events were not looked for." in page
    assert "| yes | not looked for | yes |" in page

"""The keeper tells the pages how the server is, and copies its audit log (server/control/telling.py)."""

from __future__ import annotations

import hashlib
import json

import pytest

from popmi_core.errors import RunError, SetupError
from server.centre import open_centre
from server.centre.board import card_key, kit_key, read_board
from server.centre.trail import Verifier, forget_copy, mirrored, trail
from server.control import telling
from server.control.clocks import CLOCKS_FILE
from server.control.leaving import exclude
from server.control.pins import model_path, pin
from server.control.sites import add_site, confirm
from server.control.telling import EVERY, Teller
from server.store import RunWriter
from server.store.schema import RECORD_NAME


@pytest.fixture
def centre(database):
    engine = open_centre(database)
    yield engine
    engine.dispose()


@pytest.fixture(autouse=True)
def _no_gateway(monkeypatch):
    monkeypatch.setattr("server.control.status.gateway_answers", lambda *_: True)


@pytest.fixture
def teller(invited, control, centre, clock):
    return Teller(invited, control, centre, code=lambda: "c" * 64, clock=clock)


def board(centre, key):
    return read_board(centre, key).value


def safetensors(card):
    header = json.dumps({"__metadata__": {"card": json.dumps(card)}}).encode()
    return len(header).to_bytes(8, "little") + header


def trained(home, rounds=1):
    """Write the record and the models of run `first`."""
    writer = RunWriter(home.run_folder("first") / RECORD_NAME, heartbeat=0)
    writer.start_run(
        "first", config={}, environment={}, strategy="opm", seed=0, rounds_planned=3, data_name="d", phantom=False,
        classes=["mel", "nv"], sites=["charite"],
    )  # fmt: skip
    for number in range(1, rounds + 1):
        path = model_path(home, "first", number)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(safetensors({"round": number}))
        writer.start_round(number)
        writer.finish_round(
            number, outcome="ok", seconds_total=1.0, seconds_train=1.0, seconds_fuse=1.0, seconds_evaluate=1.0,
            notes={}, model_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )  # fmt: skip
    return writer


def test_status_sites_and_the_planned_run_are_told(teller, invited, centre, control, enrolment_of, clock):
    confirm(invited, control, enrolment_of("charite"), agreed=lambda _: True, how="test")
    add_site(invited, "zurich")
    exclude(invited, "zurich", reason="not yet")
    teller.look()
    status = board(centre, "status")
    assert (status["project"], status["code_hash"], status["superlink"], status["wanted"]) == (
        "Melanoma", "c" * 64, True, None,
    )  # fmt: skip
    charite, zurich = board(centre, "sites")
    assert (charite["name"], charite["state"], charite["online"], charite["clock_skew"]) == (
        "charite", "enrolled", False, None,
    )  # fmt: skip
    assert (zurich["excluded"], bool(zurich["excluded_by"])) == ("not yet", True)
    plan = board(centre, "plan")
    assert (plan["config"]["rounds"], plan["sites"], plan["classes"]) == (3, ["charite", "zurich"], ["mel", "nv"])
    assert read_board(centre, "status").time == clock.now
    assert board(centre, kit_key("zurich"))["name"] == "zurich.zip"


def test_a_site_s_clock_comes_from_the_gateway_s_file(teller, invited, centre, control, enrolment_of):
    confirm(invited, control, enrolment_of("charite"), agreed=lambda _: True, how="test")
    from popmi_core.deployment.enrolment import fingerprint

    key = fingerprint(invited.sites()["charite"].public_key)
    (invited.processes / CLOCKS_FILE).write_text(json.dumps({"clocks": {key: {"skew": -4.5, "time": 9.0}}}))
    teller.look()
    (charite,) = board(centre, "sites")
    assert (charite["clock_skew"], charite["clock_at"]) == (-4.5, 9.0)


def test_everything_is_looked_at_every_ten_seconds_and_the_log_at_every_look(teller, invited, centre, clock):
    teller.look()
    exclude(invited, "charite", reason="x")
    teller.look()
    assert board(centre, "sites")[0]["excluded"] is None
    assert trail(centre)[0].event == "site.excluded"
    clock.now += EVERY
    teller.look()
    assert board(centre, "sites")[0]["excluded"] == "x"


def test_models_are_told_with_card_pin_and_files(teller, home, wanted, centre, clock):
    writer = trained(home, rounds=2)
    pin(home, "first", 1, note="best")
    model_path(home, "first", 2).with_suffix(".onnx").touch()
    teller.look()
    told = board(centre, "models")["first"]
    assert set(told) == {"1", "2"}
    assert (told["1"]["pin"]["note"], told["2"]["pin"]) == ("best", None)
    assert (told["1"]["here"], told["1"]["onnx"], told["2"]["onnx"]) == (True, False, True)
    assert told["1"]["size"] == model_path(home, "first", 1).stat().st_size
    assert board(centre, card_key(told["2"]["sha256"])) == {"round": 2}
    model_path(home, "first", 1).unlink()
    writer.start_round(3)
    clock.now += EVERY
    teller.look()
    assert board(centre, "models")["first"]["1"]["here"] is False


def test_a_model_without_a_card_is_told_without_one(teller, home, wanted, centre):
    trained(home)
    model_path(home, "first", 1).write_bytes(b"\x00" * 20)
    teller.look()
    told = board(centre, "models")["first"]["1"]
    assert told["here"]
    assert read_board(centre, card_key(told["sha256"])) is None


def test_a_record_that_cannot_be_read_keeps_nothing_else_old(teller, home, wanted, centre, clock):
    trained(home).close()
    teller.look()
    for name in ("", "-wal", "-shm"):
        (home.run_folder("first") / f"{RECORD_NAME}{name}").unlink(missing_ok=True)
    (home.run_folder("first") / RECORD_NAME).write_bytes(b"no database")
    clock.now += EVERY
    teller.look()
    assert board(centre, "status")["runs"][0]["state"] == "unknown"
    assert set(board(centre, "models")["first"]) == {"1"}


def test_a_registry_that_cannot_be_read_is_told_after_all_else_was(teller, invited, centre):
    invited.sites_file.write_text("{")
    with pytest.raises(SetupError, match=r"sites.json is unusable"):
        teller.look()
    assert board(centre, "models") == {}
    assert read_board(centre, "sites") is None


def test_the_log_is_copied_line_by_line_by_whichever_keeper(teller, invited, centre, control, monkeypatch):
    monkeypatch.setattr(telling, "PIECE", 2)
    teller.copy_log()
    lines = invited.audit_file.read_text().splitlines()
    assert mirrored(centre)[0] == len(lines)
    assert trail(centre, limit=None)[-1].line == lines[0]
    invited.note("one")
    with invited.audit_file.open("a") as file:
        file.write('{"half": ')
    after = Teller(invited, control, centre, code=lambda: "")
    after.copy_log()
    assert mirrored(centre)[0] == len(lines) + 1
    invited.note("two")
    after.copy_log()
    assert [line.event for line in trail(centre, limit=3)] == ["two", "log.torn", "one"]
    assert Verifier().look(centre).trouble == ""


def test_a_log_that_was_cut_off_or_written_anew_is_told_and_not_copied(teller, invited, centre, control, clock):
    teller.look()
    before, count = invited.audit_file.read_bytes(), mirrored(centre)[0]
    whole = before.splitlines(keepends=True)
    invited.audit_file.write_bytes(b"".join(whole[:-1]))
    clock.now += EVERY
    teller.look()
    assert "the log is shorter than the" in board(centre, "audit")["trouble"]
    assert any("audit log: the log is shorter" in text for text in board(centre, "status")["trouble"])
    for content, said in ((whole[0], "fewer lines than the"), (before.replace(b"Mel", b"Nev"), ""),
                          (b"".join(reversed(whole)), "is not the one that was copied")):  # fmt: skip
        invited.audit_file.write_bytes(content)
        anew = Teller(invited, control, centre, code=lambda: "", clock=clock)
        anew.look()
        assert said in board(centre, "audit")["trouble"]
    invited.audit_file.unlink()
    anew = Teller(invited, control, centre, code=lambda: "", clock=clock)
    anew.look()
    assert "fewer lines" in board(centre, "audit")["trouble"]
    assert mirrored(centre)[0] == count


def test_a_log_that_is_removed_meanwhile_is_told(teller, invited, centre, clock):
    teller.look()
    invited.audit_file.unlink()
    clock.now += EVERY
    teller.look()
    assert "the log is gone" in board(centre, "audit")["trouble"]


def test_a_copy_that_was_taken_out_is_made_anew_while_the_keeper_runs(teller, centre):
    teller.copy_log()
    lines = forget_copy(centre)
    teller.copy_log()
    assert mirrored(centre)[0] == lines


def test_a_centre_that_is_away_is_an_error_and_nothing_is_lost(teller, invited, centre, monkeypatch):
    def away(*_):
        raise RunError("centre: cannot copy the audit log: gone")

    monkeypatch.setattr(telling, "mirror", away)
    with pytest.raises(RunError, match="cannot copy"):
        teller.look()
    monkeypatch.undo()
    monkeypatch.setattr("server.control.status.gateway_answers", lambda *_: True)
    teller.look()
    assert mirrored(centre)[0] == len(invited.audit_file.read_text().splitlines())

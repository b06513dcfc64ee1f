"""The privacy ledger: what it keeps, and that it never forgets without saying so."""

import errno
import json
import multiprocessing
from pathlib import Path

import pytest

import client.ledger
from client.ledger import Entry, Ledger, history
from popmi_core.errors import PrivacyError


def entry(server_round: int = 1, **changes) -> Entry:
    values = {
        "run": "run-1",
        "server_round": server_round,
        "rounds": 6,
        "num_examples": 400,
        "epochs": 1,
        "steps": 7,
        "sample_rate": 1 / 7,
        "noise_multiplier": 1.25,
        "max_grad_norm": 1.0,
        "target_epsilon": 8.0,
        "target_delta": 1e-5,
        "epsilon": 1.5,
    }
    return Entry(**{**values, **changes})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.json"


def fill(path: Path, count: int = 3) -> Ledger:
    ledger = Ledger(path, site="rosendahl")
    for number in range(1, count + 1):
        with ledger.locked():
            ledger.append(entry(number))
    return ledger


def test_entries_come_back_as_they_were_written_and_in_order(path):
    fill(path)
    again = Ledger(path, site="rosendahl").entries()
    assert again == (entry(1), entry(2), entry(3))
    assert history(again) == [(1.25, 1 / 7, 7)] * 3


def test_a_ledger_never_opened_is_empty_and_reading_makes_no_file(path):
    assert Ledger(path, site="rosendahl").entries() == ()
    assert not path.parent.exists()


def test_every_altered_number_is_noticed(path):
    fill(path)
    text = path.read_text()
    for old, new in (('"steps": 7', '"steps": 1'), ("1.25", "9.25"), ("run-1", "run-2"), ("0.14", "0.04")):
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(PrivacyError, match="site rosendahl: the privacy ledger is damaged: entry 1 was altered"):
            Ledger(path, site="rosendahl").entries()


@pytest.mark.parametrize("keep", [0, 1, 20, 200])
def test_a_truncated_file_is_noticed(path, keep):
    fill(path)
    path.write_text(path.read_text()[:keep])
    with pytest.raises(PrivacyError, match="damaged: it is not readable JSON"):
        Ledger(path, site="rosendahl").entries()


def test_a_flipped_byte_that_is_no_text_is_noticed(path):
    fill(path)
    content = bytearray(path.read_bytes())
    content[40] ^= 0x80
    path.write_bytes(bytes(content))
    with pytest.raises(PrivacyError, match="damaged: it is not readable JSON"):
        Ledger(path, site="rosendahl").entries()


def test_a_lost_ledger_is_not_a_new_one(path):
    fill(path)
    path.unlink()
    with pytest.raises(PrivacyError, match=r"has 0 entries, expected at least 3; some were lost. Restore it"):
        Ledger(path, site="rosendahl").entries()


def test_an_older_copy_is_noticed(path):
    fill(path, 2)
    older = path.read_text()
    with Ledger(path, site="rosendahl").locked():
        Ledger(path, site="rosendahl").append(entry(3))
    path.write_text(older)
    with pytest.raises(PrivacyError, match="has 2 entries, expected at least 3"):
        Ledger(path, site="rosendahl").entries()


def test_a_lost_folder_is_noticed_by_who_knows_the_number_of_entries(path):
    with pytest.raises(PrivacyError, match="has 0 entries, expected at least 2"):
        Ledger(path, site="rosendahl", at_least=2).entries()


def test_another_ledger_of_the_same_length_does_not_pass_for_this_one(path):
    fill(path)
    other = Ledger(path.with_name("other.json"), site="rosendahl")
    for number in range(4, 7):
        other.append(entry(number))
    path.write_text(other.path.read_text())
    with pytest.raises(PrivacyError, match="damaged: another ledger took its place"):
        Ledger(path, site="rosendahl").entries()


def test_the_ledger_of_another_site_is_refused(path):
    fill(path)
    with pytest.raises(PrivacyError, match="site msk: the privacy ledger is another site's"):
        Ledger(path, site="msk").entries()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "it is not a JSON object"),
        ('{"format": "other", "site": "rosendahl", "entries": []}', "its format is not popmi-privacy-ledger/1"),
        ('{"format": "popmi-privacy-ledger/1", "site": "rosendahl"}', "its format is not popmi-privacy-ledger/1"),
        ('{"format": "popmi-privacy-ledger/1", "site": "rosendahl", "entries": [{}]}', "entry 1 is unreadable"),
        ('{"format": "popmi-privacy-ledger/1", "site": "rosendahl", "entries": [7]}', "entry 1 is unreadable"),
    ],
)
def test_a_file_that_is_no_ledger_is_refused(path, content, reason):
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(PrivacyError, match=f"damaged: {reason}"):
        Ledger(path, site="rosendahl").entries()


def test_a_last_entry_file_that_is_none_is_refused(path):
    fill(path)
    path.with_name("ledger.json.head").write_text(json.dumps({"entries": 1}))
    with pytest.raises(PrivacyError, match="damaged: its last-entry file has the wrong keys"):
        Ledger(path, site="rosendahl").entries()


def test_a_crash_between_ledger_and_witness_keeps_the_entry(path, monkeypatch):
    fill(path, 1)
    write = client.ledger._write

    def crash(target: Path, content: dict) -> None:
        if target.suffix == ".head":
            raise KeyboardInterrupt
        write(target, content)

    monkeypatch.setattr(client.ledger, "_write", crash)
    with pytest.raises(KeyboardInterrupt):
        Ledger(path, site="rosendahl").append(entry(2))
    monkeypatch.undo()
    assert len(Ledger(path, site="rosendahl").entries()) == 2
    Ledger(path, site="rosendahl").append(entry(3))
    assert len(Ledger(path, site="rosendahl").entries()) == 3


def test_a_full_disk_stops_the_site_and_leaves_the_old_ledger_whole(path, monkeypatch):
    ledger = fill(path, 1)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("popmi_core.atomic.os.fsync", full)
    with pytest.raises(PrivacyError, match=r"cannot be written \(No space left on device\), so nothing is trained"):
        ledger.append(entry(2))
    monkeypatch.undo()
    assert ledger.entries() == (entry(1),)
    assert not list(path.parent.glob("*.tmp"))


def test_a_state_folder_that_cannot_be_made_stops_the_site(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(PrivacyError, match="privacy ledger cannot be written"),
        Ledger(tmp_path / "file" / "ledger.json", site="a").locked(),
    ):
        pass


def _append_five(path: Path) -> None:
    for number in range(5):
        ledger = Ledger(path, site="rosendahl")
        with ledger.locked():
            ledger.append(entry(number))


def test_two_processes_at_once_lose_no_entry(path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append_five, args=(path,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(Ledger(path, site="rosendahl").entries()) == 10

"""A model's file, card and lineage are read from what is there; what is odd is left out, never guessed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from server.dashboard.lineage import trace
from server.dashboard.modelcards import parse_card, parse_verdict
from server.dashboard.modelfiles import LONGEST_HEADER, Shelf, read_card, read_json
from server.store import RoundRow, SiteRow

ROUND = RoundRow(3, 1.0, 2.0, "ok", 1.0, 1.0, 1.0, 1.0, {}, "00" * 32)
SITE = SiteRow(3, "a", "train", "ok", None, 100, 1.0, 1, 1, None, None)
CARD = {"round": 3, "rounds": 9, "strategy": "opm", "seed": 0}


def put(folder: Path, name: str, payload: bytes = b"x") -> Path:
    path = folder / "run" / "models" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(payload)
    return path


def test_a_rounds_files_are_found_by_kind(tmp_path: Path) -> None:
    for name in (
        "round-003.safetensors",
        "round-003.onnx",
        "round-003.md",
        "round-003.certificate.json",
        "round-003.x",
    ):
        put(tmp_path, name)
    put(tmp_path, "round-004.safetensors", b"four")
    put(tmp_path, "round-1000.safetensors", b"thousand")
    put(tmp_path, "round-x.safetensors")
    shelf = Shelf(tmp_path)
    assert set(shelf.files("run", 3)) == {"safetensors", "onnx", "md", "certificate.json"}
    assert set(shelf.files("run", 1000)) == {"safetensors"}
    assert shelf.sizes("run") == {3: 1, 4: 4, 1000: 8}


@pytest.mark.parametrize("folder", ["..", ".", "", "run/models", "/etc", "nobody", "run\x00"])
def test_a_folder_that_is_not_there_by_name_has_no_files(tmp_path: Path, folder: str) -> None:
    put(tmp_path / "inside", "round-003.safetensors")
    put(tmp_path, "round-003.safetensors")
    assert Shelf(tmp_path / "inside").files(folder, 3) == {}


def test_without_a_folder_there_is_nothing(tmp_path: Path) -> None:
    assert Shelf(None).files("run", 1) == {}
    assert Shelf(None).sizes("run") == {}
    assert Shelf(tmp_path / "gone").sizes("run") == {}


def test_a_hash_is_kept_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, "round-001.safetensors", b"one")
    shelf = Shelf(tmp_path)
    first = shelf.digest(shelf.files("run", 1)["safetensors"])
    monkeypatch.setattr("server.dashboard.modelfiles.hashlib.file_digest", None)
    assert shelf.digest(shelf.files("run", 1)["safetensors"]) == first
    monkeypatch.undo()
    path.write_bytes(b"another")
    assert shelf.digest(shelf.files("run", 1)["safetensors"]) != first


def test_many_hashes_do_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.dashboard.modelfiles._HELD", 2)
    shelf = Shelf(tmp_path)
    for number in (1, 2, 3):
        put(tmp_path, f"round-{number:03d}.safetensors", bytes([number]))
        shelf.digest(shelf.files("run", number)["safetensors"])
    assert len(shelf._digests) == 2


def header(text: str) -> bytes:
    return len(text.encode()).to_bytes(8, "little") + text.encode()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"short",
        (LONGEST_HEADER + 1).to_bytes(8, "little") + b"{}",
        header("no json"),
        header("{}"),
        header('{"__metadata__": {}}'),
        header('{"__metadata__": {"card": "[1]"}}'),
        header('{"__metadata__": {"card": 5}}'),
        header("[" * 100_000),
    ],
)
def test_a_file_without_a_card_has_none(tmp_path: Path, payload: bytes) -> None:
    assert read_card(put(tmp_path, "round-001.safetensors", payload)) is None


def test_a_card_is_read_from_the_files_header(tmp_path: Path) -> None:
    told = header(json.dumps({"__metadata__": {"card": json.dumps(CARD)}}))
    assert read_card(put(tmp_path, "round-001.safetensors", told)) == CARD
    assert read_card(tmp_path / "nothing") is None


def test_a_small_json_file_is_read_and_others_are_not(tmp_path: Path) -> None:
    assert read_json(put(tmp_path, "a.json", b'{"a": 1}')) == {"a": 1}
    assert read_json(put(tmp_path, "b.json", b"[1]")) is None
    assert read_json(put(tmp_path, "c.json", b'{"a": 1}'), longest=3) is None
    assert read_json(tmp_path / "nothing") is None


def test_cards_of_other_versions_are_read_too() -> None:
    later = parse_card(CARD | {"new": {"thing": 1}})
    assert later is not None
    assert later.server_round == 3
    assert parse_card({"round": "three"}) is None
    assert parse_card(None) is None


def test_a_verdict_is_one_or_none() -> None:
    assert parse_verdict({"group": "C4", "residue": 0.0, "tolerance": 1e-6, "holds": True}) is not None
    assert parse_verdict({"group": "C4"}) is None
    assert parse_verdict("C4") is None


def test_shares_are_parts_of_all_weights() -> None:
    row = replace(ROUND, notes={"weights": {"a": 300.0, "b": 100.0}, "chosen": "circuit", "rules": {"rule": "x"}})
    found = trace(row, [SITE, replace(SITE, site="c", outcome="late", reason="slow")])
    assert {item.site: item.share for item in found.contributions} == {"a": 0.75, "b": 0.25, "c": None}
    assert [item.site for item in found.in_it] == ["a", "b"]
    assert found.contributions[2].reason == "slow"
    assert (found.parent, found.chosen, found.void) == (2, "circuit", None)


@pytest.mark.parametrize("weights", [None, "text", {}, {"a": "much"}, {"a": 0.0}])
def test_weights_that_nobody_recorded_are_not_made_up(weights: object) -> None:
    found = trace(replace(ROUND, notes={"weights": weights}), [SITE])
    assert [item.share for item in found.contributions] == [None]


def test_a_void_round_tells_why() -> None:
    assert trace(replace(ROUND, outcome="void", notes={"void": "nobody"}), []).void == "nobody"
    assert trace(replace(ROUND, outcome="void"), []).void == "void"

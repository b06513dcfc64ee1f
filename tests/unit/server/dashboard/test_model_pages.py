"""The pages of models: which are shown, where they come from, and that only the recorded file is handed out."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fastapi.testclient import TestClient

from server.centre.board import card_key, write_board
from server.dashboard.modelfiles import read_card
from server.store import RunReader, RunWriter

Visit = Callable[..., AbstractContextManager[TestClient]]
SCRIPT = "<script>alert(1)</script>"


def test_of_each_run_best_newest_and_pinned_models_are_listed(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs, federation.centre) as client:
        page = client.get("/models").text
    assert "melanoma-2, round 11" in page
    assert "melanoma-2, round 12" in page
    assert "melanoma-2, round 10" not in page
    assert "pinned by lin" in page
    assert page.index("melanoma-2") < page.index("melanoma-1")


def test_all_rounds_of_one_run_are_a_page_away(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs) as client:
        page = client.get("/models", params={"run": "melanoma-1"}).text
        assert client.get("/models", params={"run": "nobody"}).status_code == 404
    assert all(f"/models/melanoma-1/{number}" in page for number in range(1, 9))


def test_a_long_run_is_shown_in_pages(tmp_path: Path, visiting: Visit, believable: ModuleType) -> None:
    home = tmp_path / "runs" / "long"
    home.mkdir(parents=True)
    with RunWriter(home / "record.sqlite", heartbeat=0) as writer:
        believable.begin(writer, rounds=120, name="long", sites=("a",))
        for number in range(1, 121):
            writer.start_round(number)
            writer.finish_round(number, seconds_total=1.0, model_sha256="0" * 64)
    with visiting(tmp_path / "runs") as client:
        page = client.get("/models?run=long").text
        assert "1 to 100 of 120" in page
        assert "first=100" in page
        older = client.get("/models?run=long&first=100").text
        assert "101 to 120 of 120" in older
        assert '/models/long/1"' in older
        assert "119 to" not in client.get("/models?run=long&first=5000").text


def test_a_model_says_which_sites_made_it_with_which_weight(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs) as client:
        whole, without_msk = client.get("/models/melanoma-2/11").text, client.get("/models/melanoma-2/4").text
    assert "26.2 %" in whole
    assert "Round 10" in whole
    assert "out of memory on the device" in without_msk
    assert "not in it:" in without_msk


def test_the_first_model_began_from_the_runs_start(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs) as client:
        assert "weights that follow from its description and seed 0" in client.get("/models/melanoma-2/1").text


def test_the_last_model_has_its_external_test_and_earlier_ones_say_they_have_none(
    federation: Any, visiting: Visit
) -> None:
    with visiting(federation.runs) as client:
        assert "external test" in client.get("/models/melanoma-2/12").text
        assert "not tested on the external set" in client.get("/models/melanoma-2/11").text


def test_card_verdict_and_certificate_are_shown(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs) as client:
        page = client.get("/models/melanoma-2/12").text
    assert "Trained on a phantom" in page
    assert "The weights keep the group C4" in page
    assert "coverage.level" in page
    assert "Read from the model's own file." in page


def test_weights_that_do_not_keep_their_group_are_never_shown_as_fine(
    tmp_path: Path, visiting: Visit, believable: ModuleType
) -> None:
    home = tmp_path / "runs" / "off"
    home.mkdir(parents=True)
    verdict = {"group": "C4", "residue": 0.3, "tolerance": 1e-6, "holds": False, "tensor": "stem.weight"}
    with RunWriter(home / "record.sqlite", heartbeat=0) as writer:
        believable.begin(writer, rounds=1, name="off")
        believable.add_round(writer, 1, notes={"equivariance": verdict})
    with visiting(tmp_path / "runs") as client:
        page = client.get("/models/off/1").text
    assert "do NOT keep the group C4" in page
    assert "stem.weight" in page


def test_a_void_round_says_that_its_model_is_the_one_before(
    tmp_path: Path, visiting: Visit, believable: ModuleType
) -> None:
    home = tmp_path / "runs" / "void"
    home.mkdir(parents=True)
    with RunWriter(home / "record.sqlite", heartbeat=0) as writer:
        believable.begin(writer, rounds=1, name="void")
        writer.start_round(1)
        writer.finish_round(1, outcome="void", notes={"void": "no site answered"})
    with visiting(tmp_path / "runs") as client:
        page = client.get("/models/void/1").text
        assert "no site answered" in page
        assert "the model is that of the round before" in page
        assert "The record does not say which sites took part." in page


def test_the_recorded_file_is_handed_out_with_its_hash(federation: Any, visiting: Visit) -> None:
    path = federation.runs / "melanoma-2" / "models" / "round-011.safetensors"
    with visiting(federation.runs) as client:
        answer = client.get("/models/melanoma-2/11/model.safetensors")
        part = client.get("/models/melanoma-2/11/model.safetensors", headers={"Range": "bytes=0-7"})
    assert answer.content == path.read_bytes()
    assert answer.headers["x-content-sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "melanoma-2-round-011.safetensors" in answer.headers["content-disposition"]
    assert part.status_code == 206
    assert part.content == path.read_bytes()[:8]


def test_a_damaged_file_is_not_handed_out(federation: Any, visiting: Visit) -> None:
    path = federation.runs / "melanoma-2" / "models" / "round-011.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with visiting(federation.runs) as client:
        answer = client.get("/models/melanoma-2/11/model.safetensors")
    assert answer.status_code == 409
    assert "This is not the model that was recorded" in answer.text
    assert hashlib.sha256(path.read_bytes()).hexdigest() in answer.text


def test_a_file_that_cannot_be_read_is_told(federation: Any, visiting: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("server.dashboard.modelfiles.hashlib.file_digest", broken)
    with visiting(federation.runs) as client:
        answer = client.get("/models/melanoma-2/11/model.safetensors")
    assert answer.status_code == 503
    assert "Input/output error" in answer.text


def test_onnx_certificate_and_cards_can_be_fetched(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs) as client:
        assert client.get("/models/melanoma-2/12/model.onnx").content.startswith(b"onnx")
        assert client.get("/models/melanoma-2/12/model.certificate.json").json()["verdict"] == "proved"
        assert client.get("/models/melanoma-2/12/model.md").text.startswith("# Card")
        assert client.get("/models/melanoma-2/12/card.json").json()["round"] == 12


def test_what_is_not_there_is_said_plainly(federation: Any, visiting: Visit) -> None:
    for path in (federation.runs / "melanoma-2" / "models").glob("round-011*"):
        path.unlink()
    with visiting(federation.runs) as client:
        page = client.get("/models/melanoma-2/11").text
        assert client.get("/models/melanoma-2/11/model.safetensors").status_code == 404
        assert client.get("/models/melanoma-2/11/card.json").status_code == 404
    assert "file is not here" in page
    assert "The card lies in the model" in page


@pytest.mark.parametrize(
    "address",
    [
        "/models/..%2F..%2Fetc/1/model.safetensors",
        "/models/melanoma-2/11/model...%2Frecord.sqlite",
        "/models/melanoma-2/11/model.safetensors%2F..%2F..%2Frecord.sqlite",
        "/models/melanoma-2/11/model.sqlite",
        "/models/melanoma-2/-1/model.safetensors",
        "/models/melanoma-2/99/model.safetensors",
        "/models/melanoma-2/99",
    ],
)
def test_nothing_but_a_models_files_leaves_the_folder(federation: Any, visiting: Visit, address: str) -> None:
    with visiting(federation.runs) as client:
        assert client.get(address).status_code in (404, 422)


def test_a_link_out_of_the_folder_is_no_model(federation: Any, visiting: Visit, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    models = federation.runs / "melanoma-2" / "models"
    (models / "round-011.onnx").symlink_to(secret)
    outside = tmp_path / "elsewhere"
    (federation.runs / "melanoma-1" / "models").rename(outside)
    (federation.runs / "melanoma-1" / "models").symlink_to(outside)
    with visiting(federation.runs) as client:
        assert client.get("/models/melanoma-2/11/model.onnx").status_code == 404
        assert client.get("/models/melanoma-1/8/model.safetensors").status_code == 404


def test_only_an_operator_is_offered_acts(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs, federation.centre, "viewer") as client:
        assert "/act/" not in client.get("/models/melanoma-2/11").text
    with visiting(federation.runs, federation.centre, "operator") as client:
        page = client.get("/models/melanoma-2/11").text
        assert "/act/unpin?run=melanoma-2&amp;round=11" in page
        assert "/act/onnx?run=melanoma-2&amp;round=11" in page
        assert "/act/pin?run=melanoma-2&amp;round=10" in client.get("/models/melanoma-2/10").text


def test_the_tables_are_files_too(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs, federation.centre) as client:
        chosen = list(csv.DictReader(io.StringIO(client.get("/models.csv").text)))
        every = list(csv.DictReader(io.StringIO(client.get("/models.csv?run=melanoma-1").text)))
    assert [row["round"] for row in chosen if row["run"] == "melanoma-2"] == ["12", "11"]
    assert next(row for row in chosen if row["round"] == "11")["pinned_by"] == "lin"
    assert len(every) == 8
    assert every[0]["auroc_external"]


def test_without_a_model_the_page_says_when_one_appears(tmp_path: Path, visiting: Visit) -> None:
    (tmp_path / "runs").mkdir()
    with visiting(tmp_path / "runs") as client:
        assert "No models yet." in client.get("/models").text


def test_an_unreadable_record_is_named_and_hides_no_other(federation: Any, visiting: Visit) -> None:
    (federation.runs / "bad").mkdir()
    (federation.runs / "bad" / "record.sqlite").write_bytes(b"garbage " * 1000)
    with visiting(federation.runs) as client:
        page = client.get("/models").text
        assert client.get("/models/bad/1").status_code == 503
    assert "file is not a database" in page
    assert "melanoma-2, round 12" in page


def test_a_script_in_a_cards_text_is_shown_as_text(federation: Any, visiting: Visit) -> None:
    path = federation.runs / "melanoma-2" / "models" / "round-011.safetensors"
    payload = path.read_bytes()
    assert payload.count(b"not for diagnosis") == 1
    card = json.dumps(json.dumps({"round": 11, "rounds": 12, "strategy": SCRIPT, "seed": 0, "limits": [SCRIPT]}))
    header = f'{{"__metadata__":{{"card":{card}}}}}'.encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with visiting(federation.runs) as client:
        page = client.get("/models/melanoma-2/11").text
    assert SCRIPT not in page
    assert "&lt;script&gt;" in page


def test_a_part_is_fetched_alone_and_with_its_trouble_in_place(federation: Any, visiting: Visit) -> None:
    with visiting(federation.runs) as client:
        part = client.get("/models", headers={"HX-Request": "true"})
    assert "<html" not in part.text
    assert "melanoma-2, round 12" in part.text


def test_the_record_of_the_federation_knows_its_files(federation: Any) -> None:
    with RunReader(federation.runs / "melanoma-2" / "record.sqlite") as reader:
        rows = {row.server_round: row.model_sha256 for row in reader.rounds(reader.run().id)}
    path = federation.runs / "melanoma-2" / "models" / "round-011.safetensors"
    assert rows[11] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_where_the_file_lies_elsewhere_the_keeper_tells_the_card(federation: Any, visiting: Visit) -> None:
    path = federation.runs / "melanoma-2" / "models" / "round-010.safetensors"
    digest, card = hashlib.sha256(path.read_bytes()).hexdigest(), read_card(path)
    write_board(federation.centre, card_key(digest), card)
    path.unlink()
    with visiting(federation.runs, federation.centre) as client:
        page = client.get("/models/melanoma-2/10").text
    assert "As the keeper read it" in page
    assert "lies at the server" in page

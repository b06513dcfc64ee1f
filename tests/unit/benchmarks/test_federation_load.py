"""Light sites, the slow line, and the pages of the load study and of equal models; nothing is started here."""

from __future__ import annotations

import json
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
import yaml
from flwr.app import Array, ArrayRecord
from flwr.supercore.task_identity import TaskIdentity
from safetensors.torch import save_file

from popmi_core.config import LocalConfig, ModelConfig
from popmi_core.protocol import JSON_KEY, MODEL, REPORT, Instruction, Report
from server.wire import ask

ROOT = Path(__file__).parents[3]


@pytest.fixture
def lights(load_from):
    return load_from("federation", "lights")


@pytest.fixture
def load(load_from):
    return load_from("federation", "load")


@pytest.fixture
def equal(load_from):
    return load_from("federation", "equal")


def question(kind):
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    instruction = Instruction(
        run="r", server_round=2, rounds=3, nonce="once", seed=0, classes=("a", "b"), model=ModelConfig(),
        local=LocalConfig(), phantom_images=60,
    )  # fmt: skip
    model = ArrayRecord({"w": Array(np.ones((3, 2), np.float32)), "count": Array(np.array([4]))})
    message = ask(7, kind, instruction, {MODEL: model})
    message.metadata.__dict__["_message_id"] = "m"
    return message


def test_a_light_site_s_answer_is_a_report_to_the_question_and_a_model_of_the_same_shape(lights):
    reply = lights.answer(question("train"), "north")
    report = Report.model_validate_json(reply.content.config_records[REPORT][JSON_KEY])
    assert (report.run, report.server_round, report.site, report.nonce) == ("r", 2, "north", "once")
    sent = reply.content.array_records[MODEL]
    assert 0 < np.abs(sent["w"].numpy() - 1).max() < 1e-2
    assert sent["w"].numpy().dtype == np.float32
    assert sent["count"].numpy().tolist() == [4]


def test_a_light_site_sends_the_same_change_for_the_same_round_and_another_than_its_neighbour(lights):
    first, again, other = (
        lights.answer(question("train"), site).content.array_records[MODEL]["w"].numpy() for site in ("a", "a", "b")
    )
    assert (first == again).all()
    assert (first != other).any()


def test_a_light_site_has_no_image_to_judge_by(lights):
    reply = lights.answer(question("evaluate"), "north")
    report = Report.model_validate_json(reply.content.config_records[REPORT][JSON_KEY])
    assert report.split_sizes == {"val": 0, "test": 0}
    assert MODEL not in reply.content.array_records


def test_a_line_carries_its_rate_after_its_delay(load_from):
    line = load_from("federation", "slowline").Line(1000.0, 0.1, 0.0, 0)
    assert line.arrival(500, 0.0, 10.0) == pytest.approx(10.6)
    assert line.arrival(500, 0.0, 10.0) == pytest.approx(11.1)
    assert line.arrival(500, 0.0, 20.0) == pytest.approx(20.6)


def test_a_lost_segment_holds_up_what_comes_behind_it_on_its_connection(load_from):
    line = load_from("federation", "slowline").Line(1e9, 0.1, 1.0, 0)
    first = line.arrival(1460, 0.0, 0.0)
    assert first == pytest.approx(0.3, abs=1e-3)
    line.loss = 0.0
    assert line.arrival(1460, first, 0.0) == first


def test_percentiles_are_values_that_were_measured(load):
    assert load.percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert load.percentile([float(value) for value in range(1, 101)], 95) == 95.0
    assert load.percentile([], 95) == 0.0


def test_the_page_of_the_load_study_tells_memory_and_what_did_not_work(load):
    parts = dict.fromkeys(load.WATCHED, 100.0)
    good = {
        "model": "m", "sites": 2, "peaks": parts, "processor": parts, "seconds": [1.0, 3.0], "p50": 2.0, "p95": 3.0,
        "model_megabytes": 0.13, "outcomes": {"ok": 4}, "status": "finished", "reason": None,
    }  # fmt: skip
    bad = {"model": "m", "sites": 100, "trouble": "not in 300 s: all sites on line"}
    page = load.report({"cores": 2, "load": 1.0, "rows": [good, bad], "slow": []})
    table = [line for line in page.splitlines() if line.startswith("| ")]
    assert "| s a round, median | slowest |" in table[0]
    assert "| 0.13 | 2 | 2 | 2.0 | 3.0 | 50.0 |" in table[2]
    assert table[2].endswith("| 4 ok | finished |")
    assert "not in 300 s" in table[3]
    assert {line.count("|") for line in table} == {table[0].count("|")}


def test_the_page_tells_how_long_the_slow_site_took_beside_another(load):
    diary = {"slow": {"pulled": 9.0, "pushed": 8.0}, "quick0": {"pulled": 0.2, "pushed": 0.1}}
    row = {
        "model": "m", "slow": True, "quorum": None, "p50": 20.0, "diary": diary, "outcomes": {"ok": 8},
        "status": "finished",
    }  # fmt: skip
    page = "\n".join(load.slow_part([row, {**row, "quorum": 3, "diary": {}}]))
    assert "| m | slow | all | 20.0 | 9.0 s, 8.0 s | 0.2 s, 0.1 s | 8 ok | finished |" in page
    assert "| m | slow | 3 | 20.0 | none came through |" in page
    assert "none came through" in page


def test_models_are_equal_by_their_tensors_alone_and_the_largest_difference_is_told(equal):
    state = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3)}
    moved = {**state, "a": torch.tensor([1.0, 2.5])}
    assert equal.digest(state) == equal.digest({name: tensor.clone() for name, tensor in reversed(state.items())})
    assert equal.digest(state) != equal.digest(moved)
    assert equal.digest(state) != equal.digest({**state, "b": torch.tensor(3.0)})
    assert equal.largest_difference(state, moved) == 0.5
    assert equal.largest_difference(state, {"a": state["a"]}) == float("inf")


def of(equal, state, *missing, **environment):
    return equal.Trained(state, {"torch_threads": 1, "packages": {"torch": "2.14"}, **environment}, missing)


def test_the_page_of_equal_models_says_so_and_what_was_not_compared(equal):
    state, other = {"a": torch.ones(2)}, {"a": torch.zeros(2)}
    rows = [
        {"case": "opm", "way": "simulate", "seconds": 1.0, "tensors": equal.digest(state), "moved": [3, 54]},
        equal.row("opm", "processes", 2.0, of(equal, state), of(equal, state, torch_threads=2)),
        equal.row("fedavg", "processes", 2.0, of(equal, state), of(equal, other)),
    ]
    page = equal.report({"sites": 3, "rounds": 3, "rows": rows})
    assert "yes, bit for bit | 0 |  |" in page
    assert "| opm | simulate | 1 | 3 of 54 |" in page
    assert f"NO | 1 | {equal.UNKNOWN} |" in page
    assert "Containers were not compared here" in page
    compared = equal.row("a", "containers", None, of(equal, state), of(equal, state))
    assert "Containers were" not in equal.report({"sites": 3, "rounds": 3, "rows": [compared]})


def test_models_that_differ_are_explained_by_what_the_records_know(equal):
    here, there = of(equal, {}), of(equal, {}, "round 2 without north (late)", torch_threads=2, packages={"torch": "x"})
    assert equal.why(there, here) == (
        "round 2 without north (late); packages.torch is 'x', expected '2.14'; torch_threads is 2, expected 1"
    )
    assert equal.why(here, of(equal, {}, "round 1 without south (failed)")) == (
        "simulate: round 1 without south (failed)"
    )


def test_who_was_left_out_is_who_was_asked_to_train_and_whose_training_was_not_used(equal):
    rows = [
        {"server_round": 1, "site": "north", "phase": "train", "outcome": "ok"},
        {"server_round": 2, "site": "north", "phase": "train", "outcome": "late"},
        {"server_round": 2, "site": "north", "phase": "evaluate", "outcome": "failed"},
    ]
    assert equal.left_out(rows) == ("round 2 without north (late)",)


@pytest.fixture
def export(equal, tmp_path):
    """Write an export of the first case, with some things otherwise, and return its path."""

    def write(status="finished", **changes):
        described = equal.RunConfig.model_validate({**equal.description("opm", 3), **changes})
        path, model = tmp_path / "export.zip", tmp_path / "round-003.safetensors"
        save_file({"a": torch.ones(2)}, model)
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("config.toml", tomli_w.dumps(described.model_dump(mode="json", exclude_none=True)))
            file.writestr("record/run.json", json.dumps({"status": status, "environment": {"torch_threads": 1}}))
            file.writestr("record/sites.json", "[]")
            file.writestr("record/matches.json", json.dumps([{"identity": True}, {"identity": False}]))
            file.write(model, f"model/{model.name}")
        return path

    return write


def test_an_export_of_the_same_description_is_read(equal, export, tmp_path):
    found = equal.exported(export(), tmp_path / "out", equal.description("opm", 3))
    assert found.state["a"].tolist() == [1.0, 1.0]
    assert (found.environment, found.missing, found.moved) == ({"torch_threads": 1}, (), (1, 2))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 4}, "seed is 4, expected 0"),
        ({"rounds": 2}, "rounds is 2, expected 3"),
        ({"strategy": "fedavg"}, "strategy is 'fedavg', expected 'opm'"),
        ({"model": {"backbone": "popmi_vit_nano", "image_size": 32}}, "model.backbone is 'popmi_vit_nano'"),
        ({"sites": ["phantom_slide"]}, r"sites is \['phantom_slide'\], expected \['phantom_polarised'"),
    ],
)
def test_an_export_of_another_description_is_refused_and_the_difference_named(equal, export, tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        equal.exported(export(**changes), tmp_path / "out", equal.description("opm", 3))


def test_an_export_of_a_run_that_did_not_finish_is_refused(equal, export, tmp_path):
    with pytest.raises(ValueError, match="its run is failed, expected finished"):
        equal.exported(export(status="failed"), tmp_path / "out", equal.description("opm", 3))


def test_the_containers_run_is_the_same_description_for_sites_that_docker_compose_knows(equal, tmp_path):
    printed = equal.described_for_compose(tmp_path, "opm", 3)
    assert tomllib.loads((tmp_path / "run.toml").read_text()) == equal.description("opm", 3)
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    limited = yaml.safe_load((tmp_path / "one-thread.yml").read_text())["services"]
    assert set(limited) == {"runner", "site-2", "site-3", "site-4"} <= set(services)
    assert all(service == {"environment": {"OMP_NUM_THREADS": "1"}} for service in limited.values())
    for site, number in equal.PLACES.items():
        assert f":-{site}}}" in services[f"site-{number}"]["environment"]["SITE"]
        assert f"{site}:{number}" in printed
    assert set(equal.PLACES) == set(equal.SITES)
    assert f"RUN_FILE={tmp_path}/run.toml" in printed
    assert f"--compose {tmp_path}/equal.zip" in printed


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"status": "finished", "reason": None}, "finished"),
        ({"status": "failed", "reason": "no site"}, "**failed**: no site"),
        ({"status": "running", "reason": None}, "**cut off** at the limit, still running"),
        ({"trouble": "not in 300 s"}, "**not begun**"),
    ],
)
def test_a_case_that_was_cut_off_or_failed_does_not_read_like_a_good_one(load, row, said):
    assert load.ended(row) == said

"""Light sites, the slow line, and the pages of the load study and of equal models; nothing is started here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.supercore.task_identity import TaskIdentity

from popmi_core.config import LocalConfig, ModelConfig
from popmi_core.protocol import JSON_KEY, MODEL, REPORT, Instruction, Report
from server.wire import ask


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
        "model_megabytes": 0.13, "outcomes": {"ok": 4},
    }  # fmt: skip
    bad = {"model": "m", "sites": 100, "trouble": "not in 300 s: all sites on line"}
    page = load.report({"cores": 2, "load": 1.0, "rows": [good, bad], "slow": []})
    table = [line for line in page.splitlines() if line.startswith("| ")]
    assert "| 0.13 | 2 | 2 | 2.0 | 3.0 | 50.0 |" in table[2]
    assert "not in 300 s" in table[3]
    assert {line.count("|") for line in table} == {table[0].count("|")}


def test_the_page_tells_how_long_the_slow_site_took_beside_another(load):
    diary = {"slow": {"pulled": 9.0, "pushed": 8.0}, "quick0": {"pulled": 0.2, "pushed": 0.1}}
    row = {"model": "m", "quorum": None, "p50": 20.0, "diary": diary, "outcomes": {"ok": 8}}
    page = "\n".join(load.slow_part([row, {**row, "quorum": 3, "diary": {}}]))
    assert "| none: all are waited for | 20.0 | 9.0 s, 8.0 s | 0.2 s, 0.1 s | 8 ok |" in page
    assert "none came through" in page


def test_models_are_equal_by_their_tensors_alone_and_the_largest_difference_is_told(equal):
    state = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3)}
    moved = {**state, "a": torch.tensor([1.0, 2.5])}
    assert equal.digest(state) == equal.digest({name: tensor.clone() for name, tensor in reversed(state.items())})
    assert equal.digest(state) != equal.digest(moved)
    assert equal.digest(state) != equal.digest({**state, "b": torch.tensor(3.0)})
    assert equal.largest_difference(state, moved) == 0.5
    assert equal.largest_difference(state, {"a": state["a"]}) == float("inf")


def test_the_page_of_equal_models_says_so_and_what_was_not_compared(equal):
    state, other = {"a": torch.ones(2)}, {"a": torch.zeros(2)}
    rows = [
        {"case": "opm", "way": "simulate", "seconds": 1.0, "tensors": equal.digest(state)},
        equal.row("opm", "processes", 2.0, state, state),
        equal.row("fedavg", "processes", 2.0, state, other),
    ]
    page = equal.report({"sites": 3, "rounds": 3, "rows": rows})
    assert "yes, bit for bit | 0 |" in page
    assert "NO | 1 |" in page
    assert "Containers were not compared here" in page
    assert "Containers" not in equal.report(
        {"sites": 3, "rounds": 3, "rows": [equal.row("a", "containers", None, state, state)]}
    )

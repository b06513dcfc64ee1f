"""Answers weighed and opened as Flower's own network grid fetches them (server/weighing.py, exchange.py)."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_object_children_ids_from_object_content
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import http_grid
from scripted_grid import Clock
from wired_grid import WiredGrid

from popmi_core.errors import SetupError
from popmi_core.limits import LimitsConfig
from server import weighing
from server.exchange import Exchange, Question, Round
from server.replies import Expected, open_replies
from server.results import SiteOutcome
from server.weighing import PLAIN_BYTES, at_most, refusal, unfolded_bytes, weigh_first
from server.wire import packed

SITES = {1: "a", 2: "b", 3: "c"}
GARBAGE = b"\xff" * 9


@pytest.fixture(autouse=True)
def weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's grid weighs during a test, and is Flower's own again after it."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    monkeypatch.setattr(http_grid, "pull_objects", http_grid.pull_objects)
    weigh_first()


def of_kind(contents, kind):
    return [key for key, content in contents.items() if content.startswith(f"{kind} ".encode())]


def with_body(contents, kind, body):
    """Return the objects with one of a kind replaced: the head Flower's SuperLink checks is right, the body is not."""
    (key,) = of_kind(contents, kind)
    children = ",".join(get_object_children_ids_from_object_content(contents[key]))
    return {**contents, key: f"{kind} {children} {len(body)}".encode() + b"\x00" + body}


def asked(content, change, *, quiet=(), rounds=1, **expected):
    """Return the outcomes of questions to three sites, of which b puts ``change`` on the wire, and the grid."""
    clock = Clock()

    def damaged(message: Message, contents):
        return change(contents) if message.metadata.src_node_id == 2 else contents

    grid = WiredGrid(clock, lambda message: (1, content(message)), lambda now: dict.fromkeys(SITES, "monday"), damaged)
    exchange = Exchange(grid, timeout=60, limits=LimitsConfig(), clock=clock, pause=clock.wait)
    outcomes = []
    for number in range(1, rounds + 1):
        round_ = Round()
        replies = exchange.ask(
            [Question(site, number, Message(RecordDict(), node, "train")) for node, site in SITES.items()], round_
        )
        told = Expected("r", number, {}, round_.asked, missing=round_.missing, room=round_.room, **expected)
        outcomes.append({i.site: i for i in open_replies(replies, told, lambda site, _: SiteOutcome(site, "ok"))})
    return outcomes, grid


def told(message: Message) -> RecordDict:
    return RecordDict(
        {
            "config": ConfigRecord({"json": f"of {message.metadata.dst_node_id}"}),
            "metric": MetricRecord({"x": float(message.metadata.dst_node_id)}),
        }
    )


@pytest.mark.parametrize("kind", ["ConfigRecord", "MetricRecord", "Message"])
def test_an_object_that_protobuf_cannot_read_costs_its_site_and_not_the_run(kind):
    (first, second), _ = asked(told, lambda contents: with_body(contents, kind, GARBAGE), rounds=2)
    # Flower opens them together and does not say which it was; from then on each is fetched by itself.
    assert {item.outcome for item in first.values()} == {"quarantined"}
    assert "is no message that Flower can open (DecodeError)" in first["b"].reason
    assert {site: item.outcome for site, item in second.items()} == {"a": "ok", "b": "quarantined", "c": "ok"}


def test_what_weighs_no_more_than_it_may_comes_through():
    (outcomes,), grid = asked(told, lambda contents: contents)
    assert {item.outcome for item in outcomes.values()} == {"ok"}
    assert len(grid.link.confirmed) == 3


def with_block(size):
    """Answer with tensors of so many bytes, each a different one, so that no piece is in two places."""
    block = packed(ArrayRecord({"w": Array(np.random.default_rng(0).integers(0, 255, size, np.uint8))}))
    return lambda message: RecordDict({"model": block}) if message.metadata.dst_node_id == 2 else told(message)


def test_tensors_beyond_what_was_asked_for_are_let_go_of_while_they_come():
    (outcomes,), grid = asked(with_block(30_000_000), lambda contents: contents)
    assert {site: item.outcome for site, item in outcomes.items()} == {"a": "ok", "b": "quarantined", "c": "ok"}
    assert outcomes["b"].reason.startswith(
        "site b, round 1: its answer was let go of: it is too heavy for an answer to this question: "
    )
    assert "bytes and more, expected at most 4000000" in outcomes["b"].reason
    # Six pieces of 5 MB: the first is one too much. Those that other threads were at came, too.
    assert len(of_kind({key: grid.link.objects[key] for key in grid.link.fetched}, "ArrayChunk")) < 6
    assert len(grid.link.confirmed) == 2


def test_tensors_that_were_asked_for_come_whatever_they_weigh():
    (outcomes,), _ = asked(with_block(30_000_000), lambda contents: contents, scores=31_000_000)
    assert outcomes["b"].outcome == "ok"


@pytest.mark.parametrize(
    "record",
    [ConfigRecord({"json": "x" * (PLAIN_BYTES + 1)}), MetricRecord({"x": [0.5] * 600_000})],
    ids=["texts", "figures"],
)
def test_a_report_of_any_size_is_not_taken_for_free(record):
    (outcomes,), _ = asked(
        lambda message: RecordDict({"report": record}) if message.metadata.dst_node_id == 2 else told(message),
        lambda contents: contents,
        scores=50_000_000,
    )
    assert outcomes["b"].outcome == "quarantined"
    assert f"bytes beside its tensors, expected at most {PLAIN_BYTES}" in outcomes["b"].reason


def test_one_piece_named_a_thousand_times_is_weighed_as_a_thousand():
    def folded(contents):
        (key,) = of_kind(contents, "Array")
        body = json.loads(contents[key].partition(b"\x00")[2])
        return with_body(contents, "Array", json.dumps({**body, "arraychunk_ids": [0] * 1000}).encode())

    (outcomes,), grid = asked(with_block(100_000), folded)
    assert outcomes["b"].outcome == "quarantined"
    assert "bytes once put together, expected at most 4000000" in outcomes["b"].reason
    assert len(grid.link.confirmed) == 2


def test_more_objects_than_any_model_has_are_not_even_fetched(monkeypatch):
    monkeypatch.setattr(weighing, "MOST_OBJECTS", 6)
    many = RecordDict({"model": ArrayRecord({f"w{i}": Array(np.full(1, i)) for i in range(9)})})
    (outcomes,), grid = asked(lambda message: many if message.metadata.dst_node_id == 2 else told(message), lambda c: c)
    assert "objects, expected at most 6" in outcomes["b"].reason
    assert not of_kind({key: grid.link.objects[key] for key in grid.link.fetched}, "Array")


def test_an_array_that_is_none_weighs_nothing_and_is_left_to_flower():
    for content in (b"Array", b"Array  \x00", b"Array  2\x00{}", b"Array  2\x00[]", b"Array  40\x00" + b"[" * 100_000):
        assert unfolded_bytes({"x": content}) == 0


def test_outside_of_a_question_nothing_has_a_limit_and_limits_end():
    with at_most(5):
        assert weighing._most.get() == 5
    assert weighing._most.get() == float("inf")


def test_another_reason_is_no_refusal():
    assert refusal("Reply message objects are unavailable.") == ""


def test_weighing_twice_is_weighing_once():
    once = http_grid.pull_objects
    weigh_first()
    assert http_grid.pull_objects is once


def test_another_flower_that_fetches_elsewhere_is_refused(monkeypatch):
    monkeypatch.delattr(http_grid, "pull_objects")
    with pytest.raises(SetupError, match=r"has no pull_objects, expected flwr 1\.41"):
        weigh_first()

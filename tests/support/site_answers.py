"""A site's answer to a question of round 2 of run r, and what becomes of it at the server."""

from __future__ import annotations

import torch
from flwr.app import ConfigRecord, Message, RecordDict

from popmi_core.protocol import JSON_KEY, REPORT, Report
from server.replies import Expected, layout_of
from server.rounds.validate import validate

GLOBAL = {"w": torch.zeros(2, 3), "b": torch.zeros(3)}


def expected(**changes) -> Expected:
    return Expected("r", 2, layout_of(GLOBAL), {"m-a": "a"}, **changes)


def answer(records, *, to="m-a", change=None, **report) -> Message:
    """Return a reply with these records; ``change`` is written into its report as a stranger would, unchecked."""
    question = Message(RecordDict(), 7, "train")
    question.metadata.__dict__["_message_id"] = to
    told = Report(**{"run": "r", "server_round": 2, "site": "a", "num_examples": 5, **report})
    told = told.model_copy(update=change)
    return Message(RecordDict({REPORT: ConfigRecord({JSON_KEY: told.model_dump_json()}), **records}), reply_to=question)


def outcome(message, **changes):
    result = validate([message], expected(**changes))
    assert len(result.outcomes) == 1
    return result, result.outcomes[0]

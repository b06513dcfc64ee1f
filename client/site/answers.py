"""What the gate itself answers: that it waits for an approval, has paused, or that a task failed outside the app."""

from __future__ import annotations

import json
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict

from popmi_core.protocol import INSTRUCTION, JSON_KEY, MAX_REASON, REPORT, Report
from popmi_core.records import config_record

# Taken over from the question as they are, so far as this version of the protocol has them.
ECHOED = ("run", "server_round", "nonce")


def answer(message: Message, *, site: str, error: str, waiting: bool = False) -> Message:
    """Return a reply that holds a report with ``error`` and nothing else.

    Args:
        message: The server's question; read without trusting that it is well formed.
        site: This site's name.
        error: Why there is no result; must quote no patient data.
        waiting: The site looked at no image, and asking again later makes sense.
    """
    asked = _asked(message)
    echoed = {name: asked[name] for name in ECHOED if name in asked and name in Report.model_fields}
    report = Report.model_validate(
        {"run": "unknown", "server_round": 0, **echoed, "site": site, "error": error[:MAX_REASON], "waiting": waiting}
    )
    return Message(RecordDict({REPORT: ConfigRecord({JSON_KEY: report.model_dump_json()})}), reply_to=message)


def reported(reply: Message) -> dict[str, Any]:
    """Return what the site's own log shall say of an answer's report: why it is a refusal, and how much was left out.

    The report is the bundle's, of whatever version; what makes no sense is left out.
    """
    try:
        record = config_record(reply.content, REPORT)
        told = json.loads(str(record[JSON_KEY])) if record is not None else {}
        kinds = {"error": str, "stopped": bool, "skipped_rows": int, "epsilon": float}
        return {name: told[name] for name, kind in kinds.items() if isinstance(told.get(name), kind) and told[name]}
    except (KeyError, ValueError, AttributeError):
        return {}


def waits_for_approval(code: str) -> str:
    """Return what the server is told while nobody at the site has approved its code."""
    return f"waiting for approval of code {code[:12]}: at the site, `popmi site approve`"


def _asked(message: Message) -> dict[str, Any]:
    try:
        record = config_record(message.content, INSTRUCTION)
        told = json.loads(str(record[JSON_KEY])) if record is not None else {}
    except (KeyError, ValueError):
        return {}
    if not isinstance(told, dict):
        return {}
    plain = {"run": str, "server_round": int, "nonce": str}
    return {name: told[name] for name, kind in plain.items() if isinstance(told.get(name), kind)}

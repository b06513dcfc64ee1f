"""A round's global model as ONNX, beside the model itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from popmi_core.checkpoints import file_sha256, load_state
from popmi_core.errors import RunError
from popmi_core.models import build_model, load_exchanged
from popmi_core.models.onnx_file import to_onnx, write_onnx
from popmi_core.protocol import RunPlan
from server.control.home import ServerHome
from server.control.plans import read_plan
from server.control.records import open_record


def export_onnx(home: ServerHome, run: str, server_round: int | None = None) -> Path:
    """Write a round's model as ``models/round-NNN.onnx`` in the run's folder, with its sheet; return the path.

    What the model's card says, its limits above all, goes into both.

    Args:
        home: The server's home.
        run: Name of the run.
        server_round: Which round; None is the last that gave a model.

    Raises:
        RunError: If there is no such run, round or record, the model is not the record's, or nothing can be written.
        ModelError: If the model is damaged or cannot be written as ONNX with the same answers.
        AuditError: If the audit log cannot be written.
    """
    plan = read_plan(home, run)
    number, recorded = _round(home, run, server_round)
    path = home.run_folder(run) / "models" / f"round-{number:03d}.safetensors"
    if not path.exists():
        raise RunError(
            f"run {run} has no model of round {number}: {path.name} is not there. Name a round that has one."
        )
    digest = file_sha256(path)
    if recorded is not None and recorded != digest:
        raise RunError(f"{path} is not the model that the record of round {number} tells of: it is damaged.")
    state, notes = load_state(path)
    model = _model(plan)
    load_exchanged(model, state)
    card = _card(notes.get("card", ""))
    told = {
        "run": run,
        "round": number,
        "sha256": digest,
        "classes": list(plan.classes),
        "limits": card.get("limits", []),
    }
    made = to_onnx(model, plan.config.model.image_size, {"source": json.dumps(told), "card": notes.get("card", "{}")})
    target = path.with_suffix(".onnx")
    sheet = write_onnx(target, made, told)
    home.note("model.onnx", run=run, round=number, sha256=sheet["sha256"], source_sha256=digest)
    return target


def _round(home: ServerHome, run: str, asked: int | None) -> tuple[int, str | None]:
    """Return the round's number and the sha256 that the record tells of its model."""
    with open_record(home, run) as found:
        if found is None:
            raise RunError(f"run {run} has no record yet: there is no model. Wait for its first round.")
        reader, summary = found
        rows = {row.server_round: row for row in reader.rounds(summary.id) if row.finished is not None}
    with_model = [number for number, row in rows.items() if row.model_sha256 is not None]
    number = max(with_model, default=None) if asked is None else asked
    if number is None or number not in rows:
        known = ", ".join(map(str, sorted(rows))) or "none yet"
        which = "round with a model" if number is None else f"round {number}"
        raise RunError(f"run {run} has no finished {which}; finished rounds: {known}. Name one of these.")
    return number, rows[number].model_sha256


def _model(plan: RunPlan) -> nn.Module:
    wanted = plan.config.model
    if wanted.train == "all":
        # Every weight is in the run's file: nothing is fetched.
        wanted = wanted.model_copy(update={"weights": "random"})
    return build_model(wanted, len(plan.classes), seed=plan.config.seed)


def _card(text: str) -> dict[str, Any]:
    found = json.loads(text or "{}")
    return found if isinstance(found, dict) else {}

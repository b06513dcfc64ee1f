"""Pinned models: of a run, the round whose model the operator takes; it is what an export holds."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from popmi_core.atomic import replace_atomically
from popmi_core.errors import RunError, SetupError
from server.control.home import LONGEST_REASON, Asker, RunName, ServerHome, operator, said
from server.control.plans import read_plan
from server.control.records import open_record


class Pin(BaseModel):
    """The model of one round, who pinned it and when (seconds since 1970 UTC); ``sha256`` (hex) is of its file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    round: int = Field(ge=1)
    sha256: str
    note: str = Field(default="", max_length=LONGEST_REASON)
    by: str
    time: float


_PINS: TypeAdapter[dict[RunName, Pin]] = TypeAdapter(dict[RunName, Pin])


def read_pins(home: ServerHome) -> dict[str, Pin]:
    """Return the pinned model of every run that has one.

    Raises:
        SetupError: If the file is damaged.
    """
    try:
        return dict(sorted(_PINS.validate_json(home.pins_file.read_bytes()).items()))
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        raise SetupError(
            f"{home.pins_file} is unusable: {said(error)}. Put it back from a backup; the audit log tells what was "
            "pinned."
        ) from error


def pin(home: ServerHome, run: str, server_round: int, *, note: str = "", by: Asker | None = None) -> Pin:
    """Pin the model of a round; another one of this run is pinned no more.

    Raises:
        RunError: If there is no such run or round, its model is not here, or is not the one its record tells of.
        SetupError: If the note is too long or the file of pins cannot be read or written.
    """
    read_plan(home, run)
    digest = model_digest(home, run, server_round)
    who = operator() if by is None else by.name
    try:
        made = Pin(round=server_round, sha256=digest, note=note.strip(), by=who, time=time.time())
    except ValidationError as error:
        raise SetupError(f"run {run}, round {server_round} is not pinned: {said(error)}. Correct it.") from error
    with home.held("pins"):
        pins = read_pins(home)
        home.note("model.pinned", by, run=run, round=server_round, sha256=digest, note=made.note)
        _write(home, pins | {run: made})
    return made


def unpin(home: ServerHome, run: str, *, by: Asker | None = None) -> None:
    """Have no model of a run pinned.

    Raises:
        SetupError: If none is, or the file of pins cannot be read or written.
    """
    with home.held("pins"):
        pins = read_pins(home)
        if run not in pins:
            raise SetupError(f"no model of run {run} is pinned. Pinned are: {', '.join(pins) or 'none'}.")
        home.note("model.unpinned", by, run=run, round=pins[run].round)
        _write(home, {name: item for name, item in pins.items() if name != run})


def model_path(home: ServerHome, run: str, server_round: int) -> Path:
    """Return where the global model of a round lies."""
    return home.run_folder(run) / "models" / f"round-{server_round:03d}.safetensors"


def model_digest(home: ServerHome, run: str, server_round: int) -> str:
    """Return the sha256 (hex) of a round's model, which is the one that the record tells of.

    Raises:
        RunError: If the record does not know the round or its model, or the file is missing or another.
    """
    with open_record(home, run) as found:
        if found is None:
            raise RunError(f"run {run} has no record yet: there is no model. Wait for its first round.")
        reader, summary = found
        rows = [row for row in reader.rounds(summary.id, since=server_round) if row.server_round == server_round]
    told = rows[0].model_sha256 if rows else None
    if told is None:
        raise RunError(
            f"run {run}, round {server_round}: the record tells of no such model; rounds done: {summary.rounds_done}. "
            "Choose another round."
        )
    path = model_path(home, run, server_round)
    try:
        with path.open("rb") as file:
            got = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RunError(
            f"{path} cannot be read: {error.strerror}. Put it back from a backup, or choose another round."
        ) from error
    if got != told:
        raise RunError(
            f"{path} has sha256 {got}, expected {told} as the record of round {server_round} tells: it is damaged. Put "
            "it back from a backup, or choose another round."
        )
    return told


def _write(home: ServerHome, pins: dict[str, Pin]) -> None:
    try:
        replace_atomically(home.pins_file, _PINS.dump_json(pins, indent=1))
    except OSError as error:
        raise SetupError(
            f"cannot write {home.pins_file}: {error.strerror}. Check the folder's owner and room."
        ) from error

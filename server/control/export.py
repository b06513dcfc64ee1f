"""A run as one zip file to hand on or keep: the model with its card, the record, what the audit log says of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from popmi_core.deployment import AuditLog, verify_log
from popmi_core.errors import RunError
from server.control.home import ServerHome
from server.control.pins import model_path, read_pins
from server.control.plans import CODE_FILE, CONFIG_FILE, read_plan
from server.control.records import open_record
from server.dashboard.exports import TABLES, as_csv, as_json, rows_of
from server.store import RunReader, RunSummary

SUMS = "SHA256SUMS"


def export_run(home: ServerHome, name: str, out: Path) -> tuple[str, ...]:
    """Write a run's model, record and audit excerpt, with a list of checksums; return the files' names.

    The model is the pinned one, else that of the last round. The plan stays here: it names folders of this machine.

    Raises:
        AuditError: If the audit log was changed: an excerpt of it would prove nothing.
        RunError: If there is no such run, its record was not begun, or the file cannot be written.
    """
    read_plan(home, name)
    if out.exists():
        raise RunError(f"{out} exists already. Choose another file.")
    partial = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open_record(home, name) as found:
            if found is None:
                raise RunError(f"run {name} has no record yet: nothing is to be exported. Wait for its first round.")
            sums = _fill(partial, _texts(home, name, *found), _files(home, name, *found))
        partial.replace(out)
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror}. Choose another place.") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    home.note("run.exported", run=name, sha256=_digest(out))
    return tuple(sums)


def _texts(home: ServerHome, name: str, reader: RunReader, run: RunSummary) -> Iterator[tuple[str, str]]:
    yield "record/run.json", json.dumps(asdict(run), indent=1, default=str)
    for table in TABLES:
        rows = rows_of(reader, run.id, table)
        yield f"record/{table}.csv", as_csv(table, rows)
        yield f"record/{table}.json", json.dumps([as_json(row) for row in rows], indent=1, default=str)
    head = verify_log(home.audit_file)
    lines = [item for item in AuditLog(home.audit_file).entries() if item.details.get("run") == name]
    yield "audit.jsonl", "".join(f"{item.model_dump_json()}\n" for item in lines)
    yield "audit.head", f"{head.digest if head else ''}\n"


def _files(home: ServerHome, name: str, reader: RunReader, run: RunSummary) -> Iterator[tuple[str, Path]]:
    folder = home.run_folder(name)
    pinned = read_pins(home).get(name)
    number = run.rounds_done if pinned is None else pinned.round
    told = {row.server_round: row.model_sha256 for row in reader.rounds(run.id, since=number)}
    model = model_path(home, name, number)
    if pinned is not None and not (model.exists() and _digest(model) == pinned.sha256):
        raise RunError(
            f"{model} is gone or not the model that was pinned (sha256 {pinned.sha256}). Put it back from a backup, or "
            f"pin another: `popmi server pin {name} ROUND`."
        )
    if model.exists():
        if told.get(number) not in (None, _digest(model)):
            raise RunError(f"{model} is not the model that the record of round {number} tells of: it is damaged.")
        yield f"model/{model.name}", model
    for place, path in (("model/", model.with_suffix(".md")), ("", folder / CONFIG_FILE), ("", folder / CODE_FILE)):
        if path.exists():
            yield f"{place}{path.name}", path


def _fill(path: Path, texts: Iterator[tuple[str, str]], files: Iterator[tuple[str, Path]]) -> dict[str, str]:
    sums: dict[str, str] = {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, text in texts:
            packed.writestr(name, text)
            sums[name] = hashlib.sha256(text.encode()).hexdigest()
        for name, source in files:
            packed.write(source, name)
            sums[name] = _digest(source)
        packed.writestr(SUMS, "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))
    return sums


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

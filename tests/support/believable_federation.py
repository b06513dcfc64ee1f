"""Write what a server looks like after some weeks: runs with model files, and the centre with sites, audit and orders.

All of it is synthetic and labelled as phantom. Used by tests of the pages and by their screenshots.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from sqlalchemy.engine import Engine

from popmi_core.audit import AuditLog
from popmi_core.config import RunConfig
from server.centre import open_centre
from server.centre.board import write_board
from server.centre.orders import decide, place
from server.centre.trail import mirror
from server.store import RunWriter
from server.store.schema import RECORD_NAME

HOUR = 3600.0
CODE, OLD_CODE = "3f9ac07b52d1" * 5 + "e4d2", "91b2e6aa0c47" * 5 + "77aa"
LIMITS = (
    "Trained on a phantom (computer-drawn images): its figures say nothing about patients.",
    "Research software: not a medical device, not for diagnosis.",
    "Figures are on the sites' own validation images unless said otherwise.",
)
MODEL = {"backbone": "popmi_vit_nano", "image_size": 64, "adapter": {"group": "C4", "rank": 8}}
VERDICT = {
    "group": "C4", "stored": "free coefficients", "constrained": 14, "residue": 0.0, "tensor": None, "tolerance": 1e-6,
    "holds": True,
}  # fmt: skip
PIN_NOTE, EXCLUDED = "sent to the external reader study", "new scanner, labels are being checked"
APPROVAL = f"waiting for approval of code {CODE[:12]}: at the site, `popmi site approve`"


def load_run() -> ModuleType:
    """Load the run's helper by its path: tests are no packages."""
    source = Path(__file__).with_name("believable_run.py")
    spec = importlib.util.spec_from_file_location("believable_run", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


believable = load_run()


def card_of(run: str, number: int, rounds: int, strategy: str, notes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a card as the server writes it."""
    left_out = {site: f"{outcome}: {why}" for (at, site), (outcome, why) in believable.TROUBLE.items() if at == number}
    images = {site: 400 + 90 * place for place, site in enumerate(believable.SITES)}
    return {
        "round": number, "rounds": rounds, "strategy": strategy, "seed": 0, "model": MODEL,
        "classes": list(believable.CLASSES), "data": "phantom", "phantom": True,
        "sites": {site: count for site, count in images.items() if site not in left_out}, "left_out": left_out,
        "rules": {"rule": "circuit", "head": "average"}, "metrics": {}, "external": {},
        "equivariance": notes.get("equivariance"), "privacy": {"target_epsilon": 3.0, "target_delta": 1e-5},
        "limits": list(LIMITS),
    }  # fmt: skip


def write_model(folder: Path, number: int, card: Mapping[str, Any]) -> str:
    """Write a small safetensors file with a card in its header, and the card as text; return the file's sha256."""
    folder.mkdir(parents=True, exist_ok=True)
    tensor = bytes(range(256)) * 40
    header = json.dumps(
        {
            "__metadata__": {"card": json.dumps(card), "popmi.format": "1"},
            "head.weight": {"dtype": "U8", "shape": [len(tensor)], "data_offsets": [0, len(tensor)]},
        }
    ).encode()
    payload = struct.pack("<Q", len(header)) + header + tensor
    path = folder / f"round-{number:03d}.safetensors"
    path.write_bytes(payload)
    path.with_suffix(".md").write_text(f"# Card of round {number}\n", encoding="utf-8")
    return hashlib.sha256(payload).hexdigest()


def begin_run(writer: RunWriter, name: str, rounds: int, strategy: str = "opm") -> None:
    """Open a run under differential privacy."""
    privacy = {"target_epsilon": 3.0, "target_delta": 1e-5, "max_grad_norm": 1.0}
    config = {"strategy": strategy, "rounds": rounds, "model": MODEL, "privacy": privacy, "local": {"epochs": 1}}
    believable.begin(writer, rounds=rounds, name=name, strategy=strategy, config=config)


def add_model_round(writer: RunWriter, home: Path, number: int, rounds: int, **changes: Any) -> None:
    """Write one round with its model's file."""
    notes = {"equivariance": VERDICT, **changes.pop("notes", {})}
    strategy = changes.pop("strategy", "opm")
    digest = write_model(home / "models", number, card_of(home.name, number, rounds, strategy, notes))
    believable.add_round(writer, number, sha256=digest, notes=notes, last=number == rounds, **changes)


def write_finished(runs: Path, name: str, rounds: int, strategy: str = "opm", lift: float = 0.0) -> Path:
    """Write a finished run with a model a round, and for its last one an ONNX file and a certificate."""
    home = runs / name
    home.mkdir(parents=True)
    with RunWriter(home / RECORD_NAME, heartbeat=0) as writer:
        begin_run(writer, name, rounds, strategy)
        for number in range(1, rounds + 1):
            add_model_round(writer, home, number, rounds, strategy=strategy, lift=lift)
        writer.finish_run("finished")
    (home / "models" / f"round-{rounds:03d}.onnx").write_bytes(b"onnx" * 900)
    certificate = {"verdict": "proved", "group": "C4", "residue": 0.0, "coverage": {"level": 0.9, "held": 0.92}}
    (home / "models" / f"round-{rounds:03d}.certificate.json").write_text(json.dumps(certificate), encoding="utf-8")
    return home


def write_centre(database: str | Path, runs: Path, now: float) -> None:
    """Write what the keeper tells of the server: status, sites, models, and a copy of the audit log."""
    engine = open_centre(database)
    for key, value in (("status", status()), ("sites", sites(now)), ("models", models(runs, now))):
        write_board(engine, key, value)
    log = runs.parent / "audit.jsonl"
    write_audit(log, now)
    write_board(engine, "audit", {"lines": len(log.read_text(encoding="utf-8").splitlines()), "trouble": ""})
    mirror(engine, list(enumerate(log.read_text(encoding="utf-8").splitlines(), start=1)))
    engine.dispose()


def status() -> dict[str, Any]:
    """Return what the keeper tells of the server."""
    runs = [
        {"name": name, "wanted": wanted, "state": state, "detail": "", "rounds_done": done, "rounds_planned": rounds,
         "code_hash": code, "code_since": 0.0, "sites": []}
        for name, wanted, state, done, rounds, code in (
            ("melanoma-1", "no", "finished", 8, 8, OLD_CODE),
            ("melanoma-2", "no", "finished", 12, 12, CODE),
            ("melanoma-3", "going", "running", 7, 20, CODE),
        )
    ]  # fmt: skip
    return {
        "project": "Melanoma (phantom)", "endpoint": "popmi.example.org:8443", "superlink": True, "gateway": True,
        "code_hash": CODE, "runs": runs, "waiting": ["vienna_dias"], "processes": {}, "certificate_days": 212,
        "authority_days": 3480, "disk_free_bytes": 812_000_000_000, "trouble": [], "pinned": {"melanoma-2": 11},
    }  # fmt: skip


def sites(now: float) -> list[dict[str, Any]]:
    """Return what the keeper tells of each site."""
    begun = now - 21 * 24 * HOUR

    def site(name: str, **changes: Any) -> dict[str, Any]:
        digest = hashlib.sha256(name.encode()).hexdigest()
        known = {
            "name": name, "state": "enrolled", "since": begun, "fingerprint": f"SHA256:{digest[:43]}",
            "node_id": int(digest[:8], 16), "online": True, "last_seen": now, "note": "", "excluded": None,
            "clock_skew": 0.1, "clock_at": now, "excluded_by": None, "excluded_since": None,
        }  # fmt: skip
        return known | changes

    nothing = {"fingerprint": None, "node_id": None, "online": False, "last_seen": None, "clock_skew": None}
    return [
        site("msk"),
        site("rosendahl", clock_skew=3.4),
        site("vidir_modern", online=False, last_seen=now - 2 * HOUR),
        site("vidir_molemax", excluded=EXCLUDED, excluded_by="lin", excluded_since=now - 4 * HOUR),
        site("vienna_dias", clock_skew=-0.4),
        site("oslo", **nothing, state="invited", since=now - 26 * HOUR),
        site("genova", **nothing, state="revoked", since=now - 5 * 24 * HOUR),
    ]


def models(runs: Path, now: float) -> dict[str, dict[str, Any]]:
    """Return what the keeper tells of each model."""
    told: dict[str, dict[str, Any]] = {}
    for file in sorted(runs.glob("*/models/round-*.safetensors")):
        run, number = file.parents[1].name, int(file.stem.removeprefix("round-"))
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        entry: dict[str, Any] = {
            "here": True, "size": file.stat().st_size, "onnx": file.with_suffix(".onnx").exists(), "sha256": digest,
            "pin": None,
        }  # fmt: skip
        if (run, number) == ("melanoma-2", 11):
            entry["pin"] = {"round": number, "by": "lin", "time": now - 30 * HOUR, "note": PIN_NOTE}
        told.setdefault(run, {})[str(number)] = entry
    return told


def plan() -> dict[str, Any]:
    """Return what the keeper tells of the run that is planned next."""
    return {
        "project": "Melanoma (phantom)", "classes": list(believable.CLASSES), "sites": list(believable.SITES),
        "config": RunConfig(rounds=20).model_dump(mode="json", exclude_none=True),
    }  # fmt: skip


def write_orders(engine: Engine, now: float) -> None:
    """Write orders: two that were carried out, one that was refused, one that waits."""
    for hours, kind, arguments, answer in (
        (30, "pin", {"run": "melanoma-2", "round": 11, "note": PIN_NOTE}, "round 11 of melanoma-2 is pinned"),
        (4, "exclude", {"site": "vidir_molemax", "reason": EXCLUDED}, "vidir_molemax is asked no more"),
        (3, "stop", {"run": "melanoma-2"}, ""),
    ):
        number = place(engine, kind, arguments, who="lin", via="page", clock=lambda at=hours: now - at * HOUR)
        state, said = (
            ("done", answer) if answer else ("refused", "run melanoma-2 has finished: there is nothing to stop")
        )
        decide(engine, number, state, said, clock=lambda at=hours: now - at * HOUR + 2)
    place(engine, "include", {"site": "vidir_molemax"}, who="okafor", via="page", clock=lambda: now - 1)


def write_audit(path: Path, now: float) -> None:
    """Write an audit log of some weeks."""
    lines: list[tuple[float, str, dict[str, Any]]] = [
        (-21 * 24, "server.initialised", {"who": "root", "project": "Melanoma (phantom)"}),
        *((-20 * 24 + at, "site.invited", {"who": "lin", "site": name}) for at, name in enumerate(believable.SITES)),
        *(
            (-18 * 24 + at, "site.confirmed", {"who": "lin", "site": name, "how": "fingerprint read out by telephone"})
            for at, name in enumerate(believable.SITES)
        ),
        (-6 * 24, "run.started", {"who": "lin", "run": "melanoma-1", "strategy": "fedavg"}),
        (-5 * 24, "site.revoked", {"who": "lin", "site": "genova", "reason": "laptop stolen"}),
        (-3 * 24, "run.started", {"who": "lin", "run": "melanoma-2", "strategy": "opm"}),
        (-70, "site.late", {"who": "server app", "run": "melanoma-2", "site": "rosendahl", "round": 3}),
        (-69, "site.failed", {"who": "server app", "run": "melanoma-2", "site": "msk", "round": 4,
                              "reason": "out of memory on the device"}),
        (-30, "model.pinned", {"who": "lin", "run": "melanoma-2", "round": 11, "note": PIN_NOTE}),
        (-26, "site.invited", {"who": "lin", "site": "oslo"}),
        (-4, "site.excluded", {"who": "lin", "site": "vidir_molemax", "reason": EXCLUDED}),
        (-1, "run.started", {"who": "lin", "run": "melanoma-3", "strategy": "opm"}),
        (-0.5, "site.failed", {"who": "server app", "run": "melanoma-3", "site": "vienna_dias", "round": 1,
                               "reason": APPROVAL}),
    ]  # fmt: skip
    log = AuditLog(path)
    for hours, event, details in lines:
        with mock.patch("popmi_core.audit.time.time", return_value=now + hours * HOUR):
            log.append(event, **details)


def build(folder: Path, now: float, *, database: str | Path | None = None) -> tuple[Path, str | Path]:
    """Write two finished runs and the centre below ``folder``; return the folder of runs and the centre's database."""
    runs = folder / "runs"
    write_finished(runs, "melanoma-1", 8, "fedavg", lift=-0.04)
    write_finished(runs, "melanoma-2", 12)
    centre = database or folder / "centre.sqlite"
    write_centre(centre, runs, now)
    return runs, centre

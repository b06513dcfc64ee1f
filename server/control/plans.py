"""The plan of a run over the network: what the server app finds in the run's folder."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import tomli_w

from popmi_core import __version__
from popmi_core.atomic import held_alone, replace_atomically
from popmi_core.config import RunConfig
from popmi_core.errors import ConfigError, RunError
from popmi_core.protocol import LOCK_FILE, PLAN_FILE, RunPlan
from server.control.home import ServerHome

PATIENCE = 24 * 3600.0
"""Seconds a round waits for room on the disk or for the database before the run fails over it."""
CONFIG_FILE, CODE_FILE = "config.toml", "code.json"


def run_name(config: RunConfig) -> str:
    """Return a name for a run that begins now."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{config.strategy}-seed{config.seed}"


def make_plan(home: ServerHome, config: RunConfig, name: str) -> RunPlan:
    """Write the plan of a new run and return it.

    Raises:
        ConfigError: If the description asks for what needs the sites' images in one place, or for other sites.
        RunError: If there is such a run already or its folder cannot be written.
        SetupError: If the name cannot be one.
    """
    if config.strategy == "pooled":
        raise ConfigError("strategy 'pooled' needs all images in one place: it is a reference for `popmi simulate`.")
    if config.model.adapter.group == "auto":
        raise ConfigError(
            "adapter.group = 'auto' is chosen by pilots on images of this machine. Choose with `popmi simulate --group "
            "auto` on public images, and name the group it found."
        )
    names = expected_sites(home, config)
    settings, folder = home.settings(), home.run_folder(name)
    plan = RunPlan(
        run=name,
        config=config,
        folder=str(folder),
        data_name=settings.data_name,
        phantom=settings.phantom,
        classes=settings.classes,
        lineup=(),
        external=settings.external,
        names=names,
        sites_file=str(home.sites_file),
        patience=PATIENCE,
    )
    if (folder / PLAN_FILE).exists():
        raise RunError(
            f"there is a run {name} already. Choose another --name, or go on with it: `popmi server resume {name}`."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        described = config.model_dump(mode="json", exclude_none=True)
        replace_atomically(folder / CONFIG_FILE, tomli_w.dumps(described).encode())
        # Last: what has a plan is a run.
        _write_plan(folder, plan)
    except OSError as error:
        raise RunError(f"cannot write run folder {folder}: {error.strerror}. Check its owner and room.") from error
    return plan


def expected_sites(home: ServerHome, config: RunConfig) -> tuple[str, ...]:
    """Return the sites a run waits for at its start: those its description names, or all not revoked nor excluded.

    A site that is let in later may join between two rounds.

    Raises:
        ConfigError: If there is none, one is unknown, revoked or excluded, or a round would need more.
    """
    entries = {name: entry for name, entry in home.sites().items() if entry.state != "revoked"}
    if out := [name for name in config.sites or () if name in entries and entries[name].excluded is not None]:
        raise ConfigError(
            f"sites {', '.join(out)} are excluded, but the run names them. Take them in again with `popmi server "
            "include NAME`, or correct `sites`."
        )
    known = tuple(name for name, entry in entries.items() if entry.excluded is None)
    if unknown := [name for name in config.sites or () if name not in known]:
        raise ConfigError(
            f"sites {', '.join(unknown)} are none of this server's: {', '.join(known) or 'none yet'}. Correct `sites`, "
            "or invite them: `popmi server add-site NAME`."
        )
    names = tuple(sorted(config.sites)) if config.sites else known
    if len(names) < config.min_sites:
        raise ConfigError(
            f"the run has {len(names)} site(s), expected at least min_sites = {config.min_sites}. Invite sites with "
            "`popmi server add-site NAME`, or lower min_sites."
        )
    return names


def is_held(home: ServerHome, name: str) -> bool:
    """Return whether a server app is at this run: it holds a file there until it ends, however it ends."""
    try:
        with held_alone(home.run_folder(name) / LOCK_FILE):
            pass
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def opened_at(home: ServerHome, name: str) -> float:
    """Return when a run's plan was last written, for its first start or to go on, in seconds since 1970 UTC.

    Infinity where it is gone: nothing is known of its start then.
    """
    try:
        return (home.run_folder(name) / PLAN_FILE).stat().st_mtime
    except OSError:
        return math.inf


def read_plan(home: ServerHome, name: str) -> RunPlan:
    """Return the plan of a run.

    Raises:
        RunError: If there is none, or it is damaged.
        SetupError: If the name cannot be one.
    """
    path = home.run_folder(name) / PLAN_FILE
    try:
        return RunPlan.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise RunError(f"there is no run {name}. The runs are: {', '.join(run_names(home)) or 'none yet'}.") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is missing or damaged. Put it back from a backup.") from error


def reopen_plan(home: ServerHome, name: str, *, resume: bool) -> None:
    """Have the next start of a run go on where it was, or begin; the folder may have been moved since.

    Raises:
        RunError: If there is no such run or its plan cannot be written.
    """
    plan, folder = read_plan(home, name), home.run_folder(name)
    now = plan.model_copy(
        update={"resume": resume, "folder": str(folder), "sites_file": str(home.sites_file)},
    )
    try:
        if now != plan:
            _write_plan(folder, now)
        else:
            # Its time says when this start was: see `opened_at`.
            (folder / PLAN_FILE).touch()
    except OSError as error:
        raise RunError(f"cannot write the plan in {folder}: {error.strerror}. Check its owner and room.") from error


def run_names(home: ServerHome) -> tuple[str, ...]:
    """Return the names of all runs in alphabetical order."""
    try:
        return tuple(sorted(item.name for item in home.runs.iterdir() if (item / PLAN_FILE).is_file()))
    except OSError:
        return ()


def write_code_hash(home: ServerHome, name: str, code: str) -> bool:
    """Note beside the plan which code a run runs; return whether that is another than before.

    Raises:
        RunError: If it cannot be written.
    """
    path, before = home.run_folder(name) / CODE_FILE, read_code_hash(home, name)
    if before == code and read_code_since(home, name) is not None:
        return False
    told = {"code_hash": code, "popmi": __version__, "since": time.time()}
    try:
        replace_atomically(path, json.dumps(told, indent=1).encode())
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}. Check its owner and room.") from error
    return before not in (None, code)


def read_code_hash(home: ServerHome, name: str) -> str | None:
    """Return the hash of the code a run was last started with, None before its first start."""
    try:
        told = json.loads((home.run_folder(name) / CODE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(told["code_hash"]) if isinstance(told, dict) and "code_hash" in told else None


def read_code_since(home: ServerHome, name: str) -> float | None:
    """Return when a run was first started with its code (seconds since 1970 UTC); None where that was not written."""
    try:
        told = json.loads((home.run_folder(name) / CODE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    since = told.get("since") if isinstance(told, dict) else None
    return float(since) if isinstance(since, int | float) else None


def _write_plan(folder: Path, plan: RunPlan) -> None:
    replace_atomically(folder / PLAN_FILE, json.dumps(plan.model_dump(mode="json"), indent=1).encode())

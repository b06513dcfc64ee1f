"""From a run's description to its plan: which sites there are, where their images lie, where the run is kept."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

import tomli_w

from popmi_core.atomic import held_alone
from popmi_core.config import RunConfig
from popmi_core.data import Federation, locate
from popmi_core.errors import ConfigError, RunError
from popmi_core.protocol import PLAN_FILE, POOLED_SITE, Assignment, RunPlan

CONFIG_FILE = "config.toml"
RESERVED = frozenset({POOLED_SITE, "global", "external"})


def plan_run(config: RunConfig, out: Path | None) -> RunPlan:
    """Return the plan of a new run and write its description into the run folder.

    Raises:
        ConfigError: If a named site does not exist, or the run asks for more sites than there are.
        RunError: If the folder already holds a run or cannot be written.
    """
    federation = locate(config.data.source, image_size=config.model.image_size, progress=_tell_preparation)
    sites = choose_sites(config.sites, federation)
    if config.strategy != "pooled" and config.min_sites > len(sites):
        raise ConfigError(
            f"min_sites is {config.min_sites}, but the run has {len(sites)} site(s): every round would be void. "
            "Lower min_sites."
        )
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.strategy}-seed{config.seed}"
    folder = (out or Path("runs") / name).resolve()
    plan = RunPlan(
        run=folder.name,
        config=config,
        folder=str(folder),
        data_name=federation.name,
        phantom=federation.phantom,
        classes=federation.classes,
        lineup=_lineup(config, federation, sites, folder),
        external=federation.external,
    )
    _write_plan(plan, folder)
    return plan


def reopen_run(folder: Path) -> RunPlan:
    """Return the plan of a run that stopped, to go on with it.

    Raises:
        RunError: If the folder holds no run.
    """
    path = folder / PLAN_FILE
    try:
        plan = RunPlan.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{folder} holds no run to resume: {PLAN_FILE} is missing or unreadable. Check --resume."
        ) from error
    # The folder may have been moved since; where it is now counts, also for what the sites keep in it.
    lineup = tuple(_moved(item, Path(plan.folder), folder.resolve()) for item in plan.lineup)
    return plan.model_copy(update={"resume": True, "folder": str(folder.resolve()), "lineup": lineup})


def _moved(item: Assignment, before: Path, now: Path) -> Assignment:
    state = Path(item.state)
    kept = now / state.relative_to(before) if state.is_relative_to(before) else state
    return item.model_copy(update={"state": str(kept)})


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run's folder: two processes at one run would write into each other's rounds.

    Raises:
        RunError: If another process is at this run.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(held_alone(folder / PLAN_FILE))
        except BlockingIOError as error:
            raise RunError(f"{folder}: another process is at this run. Wait for its end or stop it first.") from error
        yield


def choose_sites(wanted: tuple[str, ...] | None, federation: Federation) -> list[str]:
    """Return the sites of the run: all, the first so many, or those named.

    Raises:
        ConfigError: If a site does not exist, none is left, or one has a name that the record gives to something else.
    """
    known = list(federation.sites)
    taken = sorted(RESERVED & set(known))
    if taken:
        raise ConfigError(f"a site cannot be called {taken[0]}: the record uses this name. Rename the site's folder.")
    if wanted is None:
        return known
    if not wanted:
        raise ConfigError(f"no site is named. {federation.name} has {', '.join(known)}.")
    if len(wanted) == 1 and wanted[0].isdigit():
        count = int(wanted[0])
        if not 1 <= count <= len(known):
            raise ConfigError(f"--sites {count}: expected 1 to {len(known)} or names out of {', '.join(known)}.")
        return known[:count]
    unknown = [site for site in wanted if site not in known]
    if unknown or len(set(wanted)) != len(wanted):
        raise ConfigError(
            f"sites {', '.join(wanted)}: unknown or repeated: {', '.join(unknown) or 'a name twice'}. "
            f"{federation.name} has {', '.join(known)}."
        )
    return list(wanted)


def _tell_preparation(done: int, total: int) -> None:
    # Raw archives are prepared once; that takes seconds and should not look like a hang.
    if sys.stderr.isatty():
        print(f"\rpreparing images, once: {done} of {total}", end="\n" if done == total else "", file=sys.stderr)
    elif done == total:
        print(f"prepared {total} images, once", file=sys.stderr)


def _lineup(config: RunConfig, federation: Federation, sites: list[str], folder: Path) -> tuple[Assignment, ...]:
    lineup = [
        Assignment(site=site, data=(federation.sites[site],), state=str(folder / "sites" / site)) for site in sites
    ]
    if config.strategy == "pooled":
        everything = tuple(federation.sites[site] for site in sites)
        lineup.append(Assignment(site=POOLED_SITE, data=everything, state=str(folder / "sites" / POOLED_SITE)))
    return tuple(lineup)


def _write_plan(plan: RunPlan, folder: Path) -> None:
    path = folder / PLAN_FILE
    if folder.exists() and not folder.is_dir():
        raise RunError(f"cannot write run folder {folder}: it is a file. Choose another --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Made, never opened: of two runs that begin in one folder at once, one is refused.
        with path.open("x", encoding="utf-8") as file:
            _fill_folder(plan, folder, file)
    except FileExistsError as error:
        raise RunError(
            f"{folder} already holds a run. Choose another --out, or go on with it: --resume {shlex.quote(str(folder))}"
        ) from error
    except OSError as error:
        raise RunError(f"cannot write run folder {folder}: {error.strerror}. Choose another --out.") from error


def _fill_folder(plan: RunPlan, folder: Path, file: TextIO) -> None:
    try:
        described = plan.config.model_dump(mode="json", exclude_none=True)
        (folder / CONFIG_FILE).write_text(tomli_w.dumps(described), encoding="utf-8")
        file.write(json.dumps(plan.model_dump(mode="json"), indent=1))
        file.flush()
    except OSError:
        # Half a plan could neither be resumed nor begun again.
        (folder / PLAN_FILE).unlink(missing_ok=True)
        (folder / CONFIG_FILE).unlink(missing_ok=True)
        raise

"""What the operator does with a home and its runs: make it, begin a run, have it rest, have it go on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from popmi_core.config import RunConfig, read_config
from popmi_core.errors import RunError, SetupError
from popmi_core.protocol import RunPlan
from server.control.certificates import Certificates, ensure_certificates
from server.control.home import Asker, ServerHome, ServerSettings, Wanted, said
from server.control.plans import make_plan, read_plan, run_name
from server.control.records import standing
from server.control.superlink import ensure_secret, split_address


def init_home(home: ServerHome, settings: ServerSettings) -> Certificates:
    """Make a server's home, or make whole what is missing in one with the same settings.

    What was left to the defaults is no other setting: a newer POPMI may have other ones, and those that are there stay.

    Raises:
        SetupError: If it is another server's already, or cannot be written.
    """
    if home.settings_file.exists():
        there = home.settings()
        if other := [name for name in ServerSettings.model_fields if _says_otherwise(there, settings, name)]:
            raise SetupError(
                f"{home.folder} is set up already, with other {', '.join(other)}. Correct {home.settings_file} by "
                "hand, or choose another --home."
            )
    else:
        home.write_settings(settings)
        home.note("server.made", project=settings.project, endpoint=settings.endpoint)
    return prepare(home, settings)


def renew_home(home: ServerHome, classes: Sequence[str] = ()) -> Certificates:
    """Make whole what is missing in a home that is there, its settings as they are.

    Raises:
        SetupError: If it is no server's home, or the study has other classes than are told, if any are.
    """
    settings = home.settings()
    if classes and tuple(classes) != settings.classes:
        raise SetupError(
            f"{home.folder} is set up already, with classes {', '.join(settings.classes)}, not {', '.join(classes)}: "
            "they are fixed then. Name those, or choose another --home."
        )
    return prepare(home, settings)


def _says_otherwise(there: BaseModel, told: BaseModel, name: str) -> bool:
    """Return whether a field was told, not left to its default, and is another than the one that is there."""
    if name not in told.model_fields_set:
        return False
    before, now = getattr(there, name), getattr(told, name)
    if isinstance(before, BaseModel) and isinstance(now, BaseModel):
        return type(before) is not type(now) or any(
            _says_otherwise(before, now, inner) for inner in now.model_fields_set
        )
    return bool(before != now)


def prepare(home: ServerHome, settings: ServerSettings) -> Certificates:
    """Make what every process needs: certificates that last, the shared secret, the folders.

    Raises:
        SetupError: If something cannot be written.
    """
    names = [split_address(settings.endpoint)[0], split_address(settings.superlink)[0], *settings.names]
    certificates = ensure_certificates(home.pki, project=settings.project, names=names)
    if certificates.made:
        home.note("certificate.made", days=certificates.server_days, names=sorted(set(names)))
    ensure_secret(home.secret)
    try:
        for folder in (home.kits, home.runs, home.processes, home.folder / "flwr"):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"cannot write in {home.folder}: {error.strerror}. Check its owner and room.") from error
    return certificates


def settings_from(
    *,
    project: str,
    endpoint: str,
    superlink: str,
    names: Sequence[str],
    classes: Sequence[str],
    data: str | None,
    config: Path | None,
) -> ServerSettings:
    """Return the settings the operator described; the classes are given or those of a data set.

    Raises:
        ConfigError: If the run's description is unusable.
        DataError: If the data set is.
        SetupError: If an address, the project's name or the classes are unusable.
    """
    run = RunConfig() if config is None else read_config(config)
    if bool(classes) == (data is not None):
        raise SetupError("give either --classes A,B,... or --data, whose classes are taken.")
    told: dict[str, object] = {"classes": tuple(classes), "data_name": project}
    if data is not None:
        from popmi_core.data import locate

        federation = locate(data, image_size=run.model.image_size)
        told = {
            "classes": federation.classes,
            "data_name": federation.name,
            "phantom": federation.phantom,
            "external": federation.external,
        }
    try:
        return ServerSettings.model_validate(
            {"project": project, "endpoint": endpoint, "superlink": superlink, "names": tuple(names), "config": run}
            | told
        )
    except ValueError as error:
        raise SetupError(
            f"this describes no server: {said(error)}. Expected --endpoint HOST:PORT and at least two classes."
        ) from error


def start(home: ServerHome, config: Path | RunConfig | None, name: str | None, *, by: Asker | None = None) -> RunPlan:
    """Begin a run: write its plan and want it going; the keeper starts it. ``by`` asked, else the user at this machine.

    Raises:
        ConfigError: If the description is unusable here.
        RunError: If another run is still going, or there is one of this name.
    """
    settings = home.settings()
    described = read_config(config) if isinstance(config, Path) else config or settings.config
    if (wanted := home.wanted()) is not None:
        _require_rest(home, wanted)
    plan = make_plan(home, described, name or run_name(described))
    home.note("run.wanted", by, run=plan.run, strategy=described.strategy, rounds=described.rounds, seed=described.seed)
    home.want(plan.run, "going")
    return plan


def stop(home: ServerHome, name: str | None = None, *, by: Asker | None = None) -> str:
    """Have the run rest after the round in flight, and return its name; the keeper sees to it.

    Raises:
        RunError: If no run is wanted, or another than ``name``.
    """
    wanted = home.wanted()
    if wanted is None:
        raise RunError("no run was ever started here. Begin one: `popmi server start`.")
    if name is not None and name != wanted.run:
        raise RunError(f"run {name} is not going; the run that is wanted is {wanted.run}. Stop that one, or none.")
    home.note("run.stop", by, run=wanted.run)
    home.want(wanted.run, "stopped")
    return wanted.run


def resume(home: ServerHome, name: str | None, *, by: Asker | None = None) -> str:
    """Have a run go on after its last round, the newest without ``name``, and return its name.

    Raises:
        RunError: If there is no such run, it has finished, or another is going.
    """
    wanted = home.wanted()
    run = name or (wanted.run if wanted is not None else None)
    if run is None:
        raise RunError("no run was ever started here. Begin one: `popmi server start`.")
    read_plan(home, run)
    if standing(home, run).status == "finished":
        raise RunError(f"run {run} has finished; there is nothing to go on with. Begin another: `popmi server start`.")
    if wanted is not None and wanted.run != run:
        _require_rest(home, wanted)
    home.note("run.resume", by, run=run)
    home.want(run, "going")
    return run


def _require_rest(home: ServerHome, wanted: Wanted) -> None:
    """Refuse another run while one is going, unless it has ended by itself, well or not."""
    if wanted.state == "going":
        stand = standing(home, wanted.run)
        failed = stand.status == "failed" and (stand.finished is None or stand.finished >= wanted.since)
        if stand.status != "finished" and not failed:
            raise RunError(f"run {wanted.run} is still going. Stop it first: `popmi server stop`.")

"""`popmi server`: what the coordinating centre's operator types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from popmi_core.errors import AuditError
from server.control import accounts, choosing
from server.control.options import HOME, AsJson, Home
from server.control.options import open_control as _control
from server.control.options import open_home as _home

app = typer.Typer(help="Run a federation's server: set up, sites, runs.", no_args_is_help=True)
audit = typer.Typer(help="The server's audit log.", no_args_is_help=True)
app.add_typer(audit, name="audit")
app.add_typer(choosing.app)
app.add_typer(accounts.app, name="account")

Part = Literal["superlink", "runner", "gateway", "keeper", "dashboard"]


@app.command()
def init(
    config: Annotated[Path | None, typer.Argument(help="TOML file of the run that is planned.")] = None,
    project: Annotated[str, typer.Option(help="Name of the study.")] = ...,  # type: ignore[assignment]
    endpoint: Annotated[str, typer.Option(help="HOST:PORT at which sites reach this server.")] = ...,  # type: ignore[assignment]
    name: Annotated[list[str] | None, typer.Option(help="Another DNS name or IP of the certificate.")] = None,
    classes: Annotated[str, typer.Option(help="The study's classes, with commas between.")] = "",
    data: Annotated[str | None, typer.Option(help="A data set to take the classes from, e.g. phantom.")] = None,
    superlink: Annotated[str, typer.Option(help="HOST:PORT for the server's own processes.")] = "127.0.0.1:18000",
    home: Home = HOME,
) -> None:
    """Make a server's home: settings, certificates, secret. Said again, it makes whole what is missing."""
    from server.control.home import ServerHome
    from server.control.operate import init_home, settings_from

    settings = settings_from(
        project=project,
        endpoint=endpoint,
        superlink=superlink,
        names=name or (),
        classes=_listed(classes),
        data=data,
        config=config,
    )
    made = init_home(ServerHome(home), settings)
    typer.echo(f"{home}: server of {project}; classes {', '.join(settings.classes)}")
    typer.echo(f"certificate good for {made.server_days} days, authority for {made.ca_days}")
    typer.echo("Next: popmi server add-site NAME, then popmi server up")


@app.command()
def renew(
    classes: Annotated[str, typer.Option(help="The classes the study is said to have; others are an error.")] = "",
    home: Home = HOME,
) -> None:
    """Renew certificates and make whole what is missing; settings stay as they are, also under a newer POPMI."""
    from server.control.operate import renew_home

    place = _home(home)
    made = renew_home(place, _listed(classes))
    typer.echo(f"{home}: server of {place.settings().project}; classes {', '.join(place.settings().classes)}")
    typer.echo(f"certificate good for {made.server_days} days, authority for {made.ca_days}")


@app.command()
def up(
    only: Annotated[Part | None, typer.Option(help="Only this part, in this process (a container).")] = None,
    host: Annotated[str | None, typer.Option(help="Address of the gateway (or of the pages, with --only).")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Its port; default: the endpoint's.")] = None,
    internal_host: Annotated[str | None, typer.Option(help="Address the SuperLink binds; never a public one.")] = None,
    dashboard_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the pages.")] = 8080,
    confirm_from: Annotated[
        Path | None, typer.Option(help="Confirm every enrolment in this folder by itself: simulations only.")
    ] = None,
    refused_file: Annotated[
        Path | None,
        typer.Option(envvar="POPMI_REFUSED_FILE", help="Where gateway and keeper count refused keys, if not at home."),
    ] = None,
    home: Home = HOME,
) -> None:
    """Start the server and keep it going: SuperLink, runner, gateway, keeper, pages."""
    from server.control.running import run_all, run_part
    from server.control.superlink import Places

    pages = only == "dashboard"
    places = Places(
        superlink=internal_host,
        host="0.0.0.0" if host is None or pages else host,
        port=None if pages else port,
        dashboard_host=host if host is not None and pages else "127.0.0.1",
        dashboard_port=port if port is not None and pages else dashboard_port,
        confirm_from=None if confirm_from is None else confirm_from.absolute(),
        refused=refused_file,
    )
    if only is None:
        run_all(_home(home), places)
    else:
        run_part(_home(home), only, places)


@app.command("add-site")
def add_site(name: Annotated[str, typer.Argument(help="Name of the site.")], home: Home = HOME) -> None:
    """Invite a site: make the kit to send it. It holds no secret."""
    from server.control.sites import add_site as invite

    path = invite(_home(home), name)
    typer.echo(f"{path}\nSend it to {name}. There: popmi site enrol {path.name} --data FOLDER")


@app.command()
def confirm(
    file: Annotated[Path, typer.Argument(help="The file the site sent back.")],
    fingerprint: Annotated[str | None, typer.Option(help="SHA256:... as the site read it out.")] = None,
    home: Home = HOME,
) -> None:
    """Let a site in, once its fingerprint was compared by telephone."""
    from popmi_core.deployment.enrolment import Enrolment
    from server.control.sites import confirm as let_in

    def agreed(enrolment: Enrolment) -> bool:
        if fingerprint is not None:
            return fingerprint.strip() == enrolment.fingerprint
        typer.echo(f"site        {enrolment.site}\nfingerprint {enrolment.fingerprint}")
        return typer.confirm("Ring the site up and have it read its fingerprint out. Is it this one?")

    place = _home(home)
    with _control(place) as control:
        how = "asked at the terminal" if fingerprint is None else "given with --fingerprint"
        entry = let_in(place, control, file, agreed=agreed, how=how)
    typer.echo(f"enrolled as node {entry.node_id}")


@app.command()
def sites(json_only: AsJson = False, home: Home = HOME) -> None:
    """Show all sites: state, fingerprint, whether they are online."""
    from server.control.certificates import days_left
    from server.control.showing import print_sites, sites_as_json
    from server.control.sites import view_sites

    place = _home(home)
    with _control(place) as control:
        views = view_sites(place, control)
    days = days_left(place.certificate)
    typer.echo(sites_as_json(views, days)) if json_only else print_sites(views, days)


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Name of the site.")],
    reason: Annotated[str, typer.Option(help="Why; it goes into the audit log.")] = ...,  # type: ignore[assignment]
    home: Home = HOME,
) -> None:
    """Take a site off for good: it is cut off within one heartbeat, its key is never let in again."""
    from server.control.revoking import revoke as take_off

    place = _home(home)
    with _control(place) as control:
        take_off(place, control, name, reason=reason)
    typer.echo(f"{name} is cut off")


@app.command()
def start(
    config: Annotated[Path | None, typer.Argument(help="TOML file of the run; default: the planned one.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; default <time>-<strategy>-seed<seed>.")] = None,
    home: Home = HOME,
) -> None:
    """Begin a run; the keeper starts it within seconds and keeps it going."""
    from server.control.operate import start as begin

    typer.echo(f"run {begin(_home(home), config, name).run} is wanted. Watch: popmi server status")


@app.command()
def stop(home: Home = HOME) -> None:
    """Have the run rest after the round in flight."""
    from server.control.operate import stop as rest

    typer.echo(f"run {rest(_home(home))} rests after the round in flight. Go on: popmi server resume")


@app.command()
def resume(
    name: Annotated[str | None, typer.Argument(help="Name of the run; default: the last one.")] = None,
    home: Home = HOME,
) -> None:
    """Have a run go on after its last round."""
    from server.control.operate import resume as go_on

    typer.echo(f"run {go_on(_home(home), name)} goes on. Watch: popmi server status")


@app.command()
def status(json_only: AsJson = False, home: Home = HOME) -> None:
    """Show how the server is, what the run is at, and what stands in the way."""
    from server.control.flower import pack_bundle
    from server.control.showing import print_status
    from server.control.status import server_status

    place = _home(home)
    with _control(place) as control:
        found = server_status(place, control, pack_bundle()[1])
    typer.echo(found.as_json()) if json_only else print_status(found)


@app.command()
def export(
    name: Annotated[str, typer.Argument(help="Name of the run.")],
    out: Annotated[Path, typer.Argument(help="Zip file to write.")],
    home: Home = HOME,
) -> None:
    """Write a run's model with its card, its record and what the audit log says of it into one zip."""
    from server.control.export import export_run

    names = export_run(_home(home), name, out)
    typer.echo(f"{out}: {len(names)} files, checksums in SHA256SUMS")


@app.command()
def onnx(
    name: Annotated[str, typer.Argument(metavar="RUN", help="Name of the run.")],
    number: Annotated[
        int | None, typer.Argument(metavar="ROUND", min=0, help="Which round; default: the last that gave a model.")
    ] = None,
    home: Home = HOME,
) -> None:
    """Write a round's model as ONNX beside it, compared with torch; what it is lies in a JSON beside that."""
    from server.control.onnx import export_onnx

    typer.echo(f"{export_onnx(_home(home), name, number)}")


@app.command()
def database(
    record: Annotated[str | None, typer.Option(help="Bring all records' tables to this revision, up or down.")] = None,
    centre: Annotated[str | None, typer.Option(help="Bring the centre's tables to this revision.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = HOME,
) -> None:
    """Show at which revision the databases' tables are, or bring them to another; a newer POPMI does so by itself."""
    from server.centre.history import CENTRE_HISTORY
    from server.control.showing import print_tables
    from server.control.tables import all_tables, bring_tables
    from server.store.history import RECORD_HISTORY

    place = _home(home)
    for history, to in ((RECORD_HISTORY, record), (CENTRE_HISTORY, centre)):
        if to is None:
            continue
        asked = f"Bring the {history.what}'s tables to {to}? The way down deletes what only later revisions hold."
        if not yes and not typer.confirm(f"{asked} Is there a backup, shall it be?"):
            raise typer.Exit(1)
        bring_tables(place, history, to)
    print_tables(all_tables(place), place.folder)


@audit.callback()
def _audit() -> None:
    """The server's audit log."""


@audit.command("verify")
def verify(
    head: Annotated[str | None, typer.Option(help="Hash of a line seen before, which must still be there.")] = None,
    home: Home = HOME,
) -> None:
    """Check that no line of the log was changed or taken out; print the last line's hash, to be kept elsewhere."""
    from popmi_core.audit import torn_bytes
    from popmi_core.deployment import verify_log
    from server.control.home import ServerHome

    # A copy of the log alone, on another machine, can be checked as well.
    last = verify_log(ServerHome(home).audit_file, head=head)
    if last is None and ServerHome(home).settings_file.exists():
        file = ServerHome(home).audit_file
        raise AuditError(f"audit log {file} is empty, expected the line of this server's making. It was cut off.")
    typer.echo("the log is empty" if last is None else f"{last.number} lines, whole; head {last.digest}")
    if torn := torn_bytes(ServerHome(home).audit_file):
        typer.echo(f"{torn} bytes of a line that was not finished follow: a crash, or the end was cut off.")


@audit.command("recopy")
def recopy(home: Home = HOME) -> None:
    """Have the keeper copy the log for the pages anew, as after the home was put back from a backup."""
    from server.centre import centre_database, open_centre
    from server.centre.trail import forget_copy

    place = _home(home)
    lines = forget_copy(open_centre(centre_database(place.folder)))
    place.note("log.recopied", lines=lines)
    typer.echo(f"{lines} copied lines are taken out of the database; the keeper copies the log anew")


@audit.command("show")
def show(
    last: Annotated[int, typer.Option(min=1, help="How many lines, newest last.")] = 50,
    home: Home = HOME,
    as_json: AsJson = False,
) -> None:
    """Show what was done here, and what went wrong in runs."""
    from popmi_core.deployment import AuditLog
    from server.control.home import ServerHome

    for entry in list(AuditLog(ServerHome(home).audit_file).entries())[-last:]:
        typer.echo(entry.model_dump_json() if as_json else str(entry))


def _listed(classes: str) -> list[str]:
    return [item.strip() for item in classes.split(",") if item.strip()]

"""`popmi site`: what a hospital's IT runs."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from client.site.auditing import audit
from client.site.home import SiteHome
from client.site.options import AsJson, Home
from popmi_core.errors import DataError, PopmiError, SetupError
from popmi_core.limits import tell_number

app = typer.Typer(
    name="site",
    help="One hospital: enrol, check, approve code, take part, pause, leave.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(audit)

UNWELL = ("failed", "warning")


@app.command()
def enrol(
    kit: Annotated[Path, typer.Argument(help="The zip file from the coordinating centre.")],
    data: Annotated[
        str | None, typer.Option(help="Folder or npz file of images, or phantom:NAME to try everything out.")
    ] = None,
    label_map: Annotated[Path | None, typer.Option(help="File that maps this site's words to the classes.")] = None,
    proxy: Annotated[str | None, typer.Option(help="http://host:port; default HTTPS_PROXY.")] = None,
    new_key: Annotated[bool, typer.Option("--new-key", help="Make a new key; the old one is kept aside.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before a new key is made.")] = False,
    home: Home = None,
) -> None:
    """Make this site's key, here, and a file for the coordinating centre."""
    from client.site import enrol as enrolling
    from popmi_core.deployment import read_kit

    site, read = SiteHome(home), read_kit(kit)
    specification = data or (site.config().data if site.config_file.exists() else None)
    if specification is None:
        raise SetupError("--data is missing: name the folder with this site's images (docs/data.md shows the shapes).")
    if label_map is not None and not label_map.is_file():
        raise SetupError(f"there is no label map at {label_map}. Check the path.")
    # Before a key is touched: the wrong kit must not cost a site its key.
    if site.config_file.exists():
        enrolling.refuse_other_site(site, read)
    if new_key and site.key.exists():
        if not yes:
            typer.confirm("The server will not know the new key until the operator confirms it. Go on?", abort=True)
        typer.echo(f"The old key lies in {enrolling.set_key_aside(site)}")
    made = enrolling.enrol(site, read, data=specification, label_map=label_map, proxy=proxy)
    typer.echo(f"{'A new key was made' if made.new_key else 'The key that was here stays'}: {site.key}")
    typer.echo(f"Fingerprint: {made.fingerprint}")
    for note in made.notes:
        typer.echo(note)
    typer.echo(f"1. Send {made.file} to the coordinating centre; it holds no secret.")
    typer.echo("2. Compare the fingerprint with them by telephone.")
    typer.echo("3. popmi site doctor, check-data, dry-run, approve, run (docs/site.md).")


@app.command()
def doctor(home: Home = None, as_json: AsJson = False) -> None:
    """Check all that could keep this site from taking part; ends with 1 if something must be put right."""
    from client.site import doctor as examining
    from client.site.findings import all_well

    site = SiteHome(home)
    findings = examining.examine(site)
    typer.echo(examining.as_json(findings) if as_json else examining.as_table(findings))
    if site.config_file.exists():
        told = {state: {item.name: item.found for item in findings if item.state == state} for state in UNWELL}
        site.audit.append("doctor", **told)
    if not all_well(findings):
        raise typer.Exit(1)


@app.command("check-data")
def check_data(
    html: Annotated[Path | None, typer.Option(help="Also write the report as a page.")] = None,
    names: Annotated[bool, typer.Option("--names", help="Also list file names and words, for eyes here only.")] = False,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Read the whole data set and say what is in it, what is wrong with it, and what of it would leave the site.

    Ends with 3 if the data set cannot be used.
    """
    datacheck = importlib.import_module("client.site.datacheck")
    datapage = importlib.import_module("client.site.datapage")
    site = SiteHome(home)
    config, kit = site.config(), site.kit()
    _refuse_missing_folder(html)
    words = None if config.label_map is None else Path(config.label_map)
    size = kit.config.model.image_size
    found = datacheck.examine(config.data, config.classes, words, size, site=config.site, config=kit.config)
    typer.echo(datapage.report_json(found.report) if as_json else datapage.report_text(found.report))
    if names:
        typer.echo(datapage.details_text(found.details), err=as_json)
    if html is not None:
        _write(html, datapage.report_html(found.report))
        typer.echo(f"The page is {html}", err=True)
    told = found.report
    unusable = {entry.reason: tell_number(entry.files) for entry in told.unread}
    site.audit.append(
        "data.checked", verdict=told.verdict, reasons=told.reasons, warnings=told.warnings, unusable=unusable
    )
    if found.report.verdict == "refused":
        raise typer.Exit(DataError.exit_code)


@app.command("dry-run")
def dry_run(
    out: Annotated[Path | None, typer.Option(help="Write the whole list as JSON.")] = None,
    every: Annotated[bool, typer.Option("--every", help="Name every tensor.")] = False,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Train one round here and list exactly what would be sent. Nothing is sent, no privacy budget is spent."""
    from client.site import dryrun

    site = SiteHome(home)
    site.config()
    # Before an hour of training, not after it.
    _refuse_missing_folder(out)
    try:
        result = dryrun.dry_run(site)
    except PopmiError as error:
        site.audit.append("dry_run.failed", why=str(error))
        raise
    text = result.model_dump_json(indent=1)
    typer.echo(text if as_json else dryrun.as_text(result, every=every))
    if out is not None:
        _write(out, text)
        typer.echo(f"The whole list is in {out}", err=True)
    site.audit.append("dry_run", bytes=result.bytes, tensors=sum(len(step.tensors) for step in result.steps))


@app.command()
def approve(
    code: Annotated[
        str | None, typer.Argument(help="The first letters of the code's hash; default the newest.")
    ] = None,
    installed: Annotated[
        bool, typer.Option("--installed", help="Approve the code this installation of POPMI would itself run.")
    ] = False,
    summary: Annotated[bool, typer.Option("--summary", help="Name the files that differ, not every line.")] = False,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Let the code run no more.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = None,
) -> None:
    """Show what code wants to run here, beside what was approved last, and let it."""
    from client.site import approval

    site = SiteHome(home)
    site.config()
    approvals = approval.Approvals(site)
    if withdraw:
        gone = _known(approvals, code)
        approvals.withdraw(gone)
        typer.echo(f"{gone[:12]} runs here no more.")
        return
    if installed:
        wanted = approvals.keep(approval.installed_code())
    else:
        wanted = approvals.find(code) if code else _newest(approvals)
    if approvals.allows(wanted):
        typer.echo(f"{wanted[:12]} is approved already.")
        return
    old, new = approvals.before(wanted), approvals.content(wanted)
    _show(old, new, wanted, summary=summary or (installed and yes))
    if not yes:
        typer.confirm(f"Let code {wanted[:12]} run on this site's images?", abort=True)
    approvals.approve(wanted)
    typer.echo(f"Approved: {wanted}")


@app.command()
def run(home: Home = None) -> None:
    """Take part, until this process is told to end. Ended parts start again by themselves."""
    from client.site import run as running

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s: %(message)s")
    running.take_part(SiteHome(home))


@app.command()
def pause(
    reason: Annotated[str, typer.Option(help="What the operator is told.")] = "",
    home: Home = None,
) -> None:
    """Answer the server that this site has paused, until `resume`; a round in hand is finished."""
    from client.site import run as running

    running.pause(SiteHome(home), reason)
    typer.echo("Paused. `popmi site resume` ends the pause; a restart does not.")


@app.command()
def resume(home: Home = None) -> None:
    """End a pause."""
    from client.site import run as running

    typer.echo("The site takes part again." if running.resume(SiteHome(home)) else "The site had not paused.")


@app.command()
def leave(
    forget: Annotated[bool, typer.Option("--forget", help="Remove the private key.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = None,
) -> None:
    """Stop taking part for good."""
    from client.site import run as running

    site = SiteHome(home)
    config = site.config()
    if not yes:
        typer.confirm(f"Leave project {config.project} as site {config.site}?", abort=True)
    running.leave(site, forget=forget)
    typer.echo(f"Left. {'The key was removed.' if forget else ''}")
    typer.echo(f"Ask the operator to run: popmi server revoke {config.site}")
    typer.echo("What the site has sent already is in the models; state/ keeps the privacy ledger: do not remove it.")
    # Last: in a container this ends the command, too.
    if running.end_running(site):
        typer.echo("The running process was ended.")


@app.command()
def status(home: Home = None, as_json: AsJson = False) -> None:
    """Say what this site is doing; ends with 1 if it does not take part."""
    from client.site import run as running

    told = running.status(SiteHome(home))
    typer.echo(json.dumps(told, indent=1) if as_json else _status_text(told))
    if not told["well"]:
        raise typer.Exit(1)


def _refuse_missing_folder(path: Path | None) -> None:
    if path is not None and not path.absolute().parent.is_dir():
        raise SetupError(
            f"there is no folder {path.absolute().parent} to write {path.name} into. Make it, or name another."
        )


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror}. Check its folder's owner and room.") from error


def _newest(approvals: Any) -> str:
    waiting = approvals.waiting()
    if not waiting:
        raise SetupError(
            "no code waits for approval. It comes with the server's first question; --installed approves what this "
            "installation of POPMI would run."
        )
    return str(waiting[0])


def _known(approvals: Any, start: str | None) -> str:
    found = [item.code for item in approvals.approved() if start and item.code.startswith(start)]
    if len(found) != 1:
        raise SetupError(
            f"{len(found)} approved codes begin with '{start or ''}', expected one. See popmi site status."
        )
    return str(found[0])


def _show(old: dict[str, bytes], new: dict[str, bytes], code: str, *, summary: bool) -> None:
    from client.site import approval

    difference = approval.changed(old, new)
    base = f"the last approved code: {approval.summary(difference)}" if old else f"nothing: {len(new)} files, all new"
    typer.echo(f"Code {code[:12]}, compared with {base}")
    for what, paths in difference.items():
        for path in paths if old else []:
            typer.echo(f"  {what}: {path}")
    if not summary:
        lines = "\n".join(approval.unified(old, new))
        # Thousands of lines belong in a pager; a pipe gets them as they are.
        tell = typer.echo_via_pager if sys.stdout.isatty() else typer.echo
        tell(lines)


def _status_text(told: dict[str, Any]) -> str:
    from client.site.contact import UNHEARD

    state = "does NOT take part" if not told["well"] else "has paused" if told["paused"] is not None else "takes part"
    lines = [f"Site {told['site']}, project {told['project']}, server {told['endpoint']}: {state}"]
    if told["process"] is None:
        lines.append("  no process runs: `popmi site run`, or systemctl start popmi-site")
    elif (heard := told["server_heard_seconds_ago"]) is None or heard > UNHEARD:
        lines.append("  the server does not answer the node: `popmi site doctor` says why, `audit show` since when")
    for name, item in told["processes"].items():
        lines.append(
            f"  {name}: process {item['process']}, started {item['starts']} times, last code {item['exit_code']}"
        )
    if told["paused"] is not None:
        lines.append(f"  paused: {told['paused']}")
    if told["left"]:
        lines.append("  has left the project")
    lines.append(f"  approved code: {', '.join(code[:12] for code in told['approved']) or 'none'}")
    if told["waiting"]:
        lines.append(f"  waits for approval: {', '.join(code[:12] for code in told['waiting'])} (`popmi site approve`)")
    return "\n".join(lines)

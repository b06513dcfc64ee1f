"""`popmi site audit`: show and verify this site's own log."""

from __future__ import annotations

from typing import Annotated

import typer

from client.site.home import SiteHome
from client.site.options import AsJson, Home
from popmi_core.errors import AuditError

audit = typer.Typer(name="audit", help="This site's own log, which only grows.", no_args_is_help=True)


@audit.command()
def verify(
    head: Annotated[str | None, typer.Option(help="The head an earlier verification told.")] = None, home: Home = None
) -> None:
    """Check that no line was changed or taken out; keep the head that is told somewhere else."""
    from popmi_core.audit import torn_bytes
    from popmi_core.deployment import verify_log

    site = SiteHome(home)
    last = verify_log(site.audit.path, head=head)
    if last is None and site.enrolled:
        raise AuditError(f"audit log {site.audit.path} is empty, expected this site's enrolment. It was cut off.")
    typer.echo("The log is empty." if last is None else f"{last.number} lines, whole. Head: {last.digest}")
    if torn := torn_bytes(site.audit.path):
        typer.echo(f"{torn} bytes of a line that was not finished follow: a crash, or the end was cut off.")


@audit.command()
def show(
    last: Annotated[int, typer.Option(min=1, help="How many lines, newest last.")] = 50,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Show what happened at this site."""
    for entry in list(SiteHome(home).audit.entries())[-last:]:
        typer.echo(entry.model_dump_json() if as_json else str(entry))

"""Options that most commands of `popmi site` take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client.site.home import HOME_VARIABLE

Home = Annotated[
    Path | None, typer.Option("--home", envvar=HOME_VARIABLE, help="The site's folder; default ./popmi-site.")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON only.")]

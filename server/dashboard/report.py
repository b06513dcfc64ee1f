"""Write a run as one HTML file: no script, no outside request, readable in ten years."""

from __future__ import annotations

import base64
import hashlib
import time
from pathlib import Path

from popmi_core.errors import RunError
from server.dashboard.charts import SITE_FIGURES
from server.dashboard.language import SOURCE
from server.dashboard.rendering import environment
from server.dashboard.views import RunView, view_run
from server.store import RunReader

_STYLE = Path(__file__).parent / "static" / "page.css"


def render_report(reader: RunReader, run_id: int, *, now: float | None = None, language: str = SOURCE) -> str:
    """Return the report; charts of every split with curves, tables, config, environment and limits."""
    now = time.time() if now is None else now
    view = view_run(reader, run_id, split=None, now=now)
    views = _with_curves([view_run(reader, run_id, split=split, now=now) for split in view.splits])
    style = _STYLE.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    template = environment(language).get_template("report.html")
    return template.render(view=view, views=views, style=style, digest=digest, now=now, language=language)


def _with_curves(views: list[RunView]) -> list[RunView]:
    """Keep the splits that have a curve to draw; a split looked at once stands in the table of newest figures."""

    def drawn(view: RunView) -> bool:
        return any(len(chart.rounds) > 1 for chart in view.charts if chart.id not in SITE_FIGURES)

    # The training split has nothing but the training loss, which every other split shows beside its own curves.
    return [view for view in views if view.split != "train" and drawn(view)] or views[:1]


def write_report(reader: RunReader, run_id: int, path: Path) -> Path:
    """Write the report of a run, finished or not, to ``path`` and return it; whole or not at all.

    Raises:
        RunError: If the record cannot be read or the file not be written.
    """
    text = render_report(reader, run_id)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8", errors="replace")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise RunError(f"report {path} cannot be written: {error.strerror}. Check free space and rights.") from error
    return path

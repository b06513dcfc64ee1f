"""The load study's page, from its figures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

INTRODUCTION = """# The pages under load

Printed by `python benchmarks/dashboard/load.py --out docs/results/dashboard_load`; every figure is in
`dashboard_load.json`. A record of {rounds} rounds and {sites} sites (figures and tables of believable_run.py), `popmi
serve` as a person starts it, {viewers} viewers that each open the run, keep its event stream and fetch what the page
fetches, while a writer adds a round every {every:g} s for {seconds:g} s. A further client asks for one page after the
other: its seconds are under *Pages*. PostgreSQL runs without fsync. Pages, viewers, writer and database share
{cores} cores with whatever else the machine has to do: load average {load} when the study began, and under *Process* at
the end of each case. On a machine that is busy with other work every figure but memory and bytes says more of that work
than of the pages.
"""


def report(found: dict[str, Any]) -> str:
    """Return the page in Markdown."""
    cases = found["cases"]
    parts = [INTRODUCTION.format(**found), "## Live", _live(cases), "## Pages", _pages(cases)]
    parts += ["## What viewers fetched", _fetched(cases), "## Process", _process(cases)]
    parts += ["## Files that a page loads", _assets(found["assets"])]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _live(cases: dict[str, Any]) -> str:
    rows = []
    for name, case in cases.items():
        for what, key in (("commit to event", "event"), ("commit to the round on the page", "shown")):
            rows.append((name, what, case[key]["count"], *_three(case[key])))
        rows.append((name, "writing a round", case["writing"]["count"], *_three(case["writing"])))
    told = _table(("database", "what", "of", "p50, ms", "p95, ms", "max, ms"), rows)
    missed = "; ".join(f"{name} {case['not_shown']}" for name, case in cases.items())
    trouble = "; ".join(f"{name} {sum(case['trouble'].values())}" for name, case in cases.items())
    return f"{told}\n\nRounds that a viewer never saw: {missed}. Answers with an error, lost streams: {trouble}."


def _pages(cases: dict[str, Any]) -> str:
    rows = [
        (database, name, took["status"], took["count"], f"{took['bytes'] / 1e3:.1f}", *_three(took))
        for database, case in cases.items()
        for name, took in case["pages"].items()
    ]
    return _table(("database", "page", "answer", "times", "kB sent", "p50, ms", "p95, ms", "max, ms"), rows)


def _fetched(cases: dict[str, Any]) -> str:
    rows = [
        (database, f"`{kind}`", took["count"], f"{took['bytes'] / 1e6:.1f}", *_three(took))
        for database, case in cases.items()
        for kind, took in case["fetched"].items()
    ]
    late = "; ".join(f"{name} {case['viewers_late']['p95'] * 1e3:.0f}" for name, case in cases.items())
    told = _table(("database", "what", "times", "MB sent", "p50, ms", "p95, ms", "max, ms"), rows)
    return f"{told}\n\nSeen by the viewers' one process, which adds to it: its own loop was late by (p95, ms): {late}."


def _process(cases: dict[str, Any]) -> str:
    rows = [
        (
            name, f"{case['cold']['healthz']:.2f}", f"{case['cold']['run']:.2f}", f"{case['megabytes_peak']:.0f}",
            f"{case['opened_processor']:.1f}", f"{case['processor']:.1f}", f"{case['wall']:.0f}",
            f"{case['load']:.1f}", f"{case['megabytes']:.0f}",
        )
        for name, case in cases.items()
    ]  # fmt: skip
    head = (
        "database", "cold start to /healthz, s", "to the run's page, s", "peak memory (VmHWM), MB",
        "processor while viewers open, s", "processor while rounds come, s", "of, s", "load average then", "record, MB",
    )  # fmt: skip
    return _table(head, rows)


def _assets(assets: list[dict[str, Any]]) -> str:
    rows = [(item["name"], f"{item['bytes'] / 1e3:.1f}", f"{item['gzip'] / 1e3:.1f}") for item in assets]
    total = [sum(item[what] for item in assets) / 1e3 for what in ("bytes", "gzip")]
    return _table(("file", "kB", "compressed, kB"), [*rows, ("all", *(f"{each:.1f}" for each in total))])


def _three(took: dict[str, Any]) -> tuple[str, ...]:
    return tuple("–" if key not in took else f"{took[key] * 1e3:.0f}" for key in ("p50", "p95", "max"))


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)

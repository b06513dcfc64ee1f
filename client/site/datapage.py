"""A data report for people: as text for a terminal, as a page, as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from client.site.datareport import DataReport, LocalDetails
from popmi_core.data.manifest import name_rows
from popmi_core.limits import MIN_CELL, tell_number

HIDDEN = "*"
_LEGEND = f"{HIDDEN}: hidden, fewer than {MIN_CELL} images, or a number that would give such a one away."
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 500; color: #555; }
.verdict { font-size: 1.3rem; padding: 0.6rem 1rem; border-left: 6px solid #D55E00; background: #fdf3ec; }
.usable { border-color: #009E73; background: #eef8f4; }
.quiet { color: #555; font-size: 0.9rem; }
"""

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
Section = tuple[str, Sequence[str], Table | None]


def report_text(report: DataReport) -> str:
    """Return the report as plain text, tables aligned."""
    lines = [_verdict(report), ""]
    for title, sentences, table in _sections(report):
        lines += [title, *(f"  - {sentence}" for sentence in sentences)]
        lines += [f"  {line}" for line in _aligned(table)] if table else []
        lines.append("")
    return "\n".join(lines)


def report_html(report: DataReport) -> str:
    """Return the report as a page that needs no other file, holds no script, and escapes every text."""
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Data check</title>',
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>',
        "<h1>Data check</h1>",
        f'<p class="verdict {report.verdict}">{escape(_verdict(report))}</p>',
    ]
    for title, sentences, table in _sections(report):
        parts.append(f"<h2>{escape(title)}</h2>")
        if sentences:
            parts.append("<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>")
        if table:
            parts.append(_table_html(table))
    closing = f"POPMI {report.popmi}. Holds no name of a patient or a file. It was sent to nobody."
    return "\n".join([*parts, f'<p class="quiet">{escape(closing)}</p></body></html>\n'])


def report_json(report: DataReport) -> str:
    """Return the report as JSON, a trailing newline included."""
    return report.model_dump_json(indent=1) + "\n"


def details_text(details: LocalDetails) -> str:
    """Return the list that stays at the site as plain text, its notice first."""
    rows = [
        (str(entry.row) if entry.row is not None else "", entry.file or "-", entry.what) for entry in details.entries
    ]
    return "\n".join([details.notice, "", *_aligned((("row", "file", "what"), rows)), ""])


def _verdict(report: DataReport) -> str:
    subject = "This phantom (drawn images, no patient)" if report.phantom else "This data set"
    if report.verdict == "usable":
        return f"USABLE. {subject} can take part as it is."
    return f"REFUSED. {subject} cannot take part yet, for {len(report.reasons)} reason(s)."


def _sections(report: DataReport) -> Iterator[Section]:
    if report.reasons:
        yield "Why it is refused, and what to do", report.reasons, None
    if report.warnings:
        yield "What to look at", report.warnings, None
    yield f"Images per class and split ({report.source})", [_LEGEND] if report.splits else [], _counts(report)
    yield "Labels", list(_labels(report)), None
    yield "Leakage between splits", list(_leakage(report)), None
    yield "Files", list(_files(report)), None
    if report.unread:
        rows = [
            (entry.reason, tell_number(entry.files), name_rows(entry.rows) if entry.rows else "--names lists them")
            for entry in report.unread
        ]
        yield "Cannot be used, and is left out", [], (("reason", "files", "where"), rows)
    if report.tags:
        tags = [
            (tag.name, tag.kind, tell_number(tag.files), "refused" if tag.refuses else "told") for tag in report.tags
        ]
        yield "DICOM attributes that tell of patients", [], (("attribute", "kind", "files", ""), tags)
    yield "What would leave this site", report.leaves, None


def _counts(report: DataReport) -> Table | None:
    if not report.splits:
        return None
    header = ("class", *(split.split for split in report.splits))
    rows = [
        (name, *(_number(split.classes[place]) for split in report.splits)) for place, name in enumerate(report.classes)
    ]
    return header, [*rows, ("all", *(_number(split.images) for split in report.splits))]


def _labels(report: DataReport) -> Iterator[str]:
    labels = report.labels
    yield f"Classes with at least {MIN_CELL} images: {', '.join(labels.told) or 'none'}."
    if labels.few:
        yield f"Classes with fewer, or none (which is fine): {', '.join(labels.few)}."
    if labels.unmapped_rows:
        yield f"{labels.unmapped_words} word(s) without a class: {name_rows(labels.unmapped_rows)}."
    if labels.excluded != 0:
        yield f"{tell_number(labels.excluded)} image(s) are left out by the label map."


def _leakage(report: DataReport) -> Iterator[str]:
    leakage = report.leakage
    torn, across, within = map(tell_number, (leakage.torn_groups, leakage.same_across, leakage.same_within))
    yield f"Kept together by {leakage.grouped_by}; patients or lesions in more than one split: {torn}."
    yield f"The very same picture in more than one split: {across}; copies in one: {within}."


def _files(report: DataReport) -> Iterator[str]:
    shape = report.shape
    if not shape.kinds:
        yield "No files of pictures to look at."
        return
    yield ", ".join(f"{_number(number)} {kind}" for kind, number in shape.kinds.items()) + "."
    yield f"Pixels: {shape.smallest} to {shape.largest}, median shorter side {shape.median_side}."
    yield f"{_number(shape.colour)} in colour, {_number(shape.grey)} grey."


def _number(count: int | None) -> str:
    return HIDDEN if count is None else str(count)


def _aligned(table: Table) -> list[str]:
    header, rows = table
    widths = [max(len(str(row[place])) for row in (header, *rows)) for place in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]


def _table_html(table: Table) -> str:
    def row(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    header, rows = table
    return f"<table>{row(header, 'th')}{''.join(row(cells, 'td') for cells in rows)}</table>"

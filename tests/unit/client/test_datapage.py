"""The report for people: text, page, JSON, and the list that stays at the site."""

from __future__ import annotations

import json

import pytest

from client.site.datapage import details_text, report_html, report_json, report_text
from client.site.datareport import (
    DataReport,
    Labels,
    Leakage,
    LocalDetail,
    LocalDetails,
    Shape,
    SplitCounts,
    TagCount,
    Unread,
)


def _report(**changes: object) -> DataReport:
    told: dict[str, object] = {
        "popmi": "1.2.3",
        "verdict": "refused",
        "reasons": ("DICOM files tell who the patients are: PatientName (0010,0010) in fewer than 5 file(s).",),
        "warnings": ("Some file(s) or row(s) cannot be used and are left out; --names lists them.",),
        "source": "folder with labels.csv",
        "phantom": False,
        "classes": ("mel", "<script>nv"),
        "splits": (
            SplitCounts(split="train", images=24, classes=(12, 12)),
            SplitCounts(split="val", images=None, classes=(None, None)),
        ),
        "labels": Labels(told=("mel",), few=("<script>nv",), unmapped_words=1, unmapped_rows=(3, 5), excluded=None),
        "unread": (Unread(reason="image file is missing", files=None, rows=()),),
        "leakage": Leakage(grouped_by="patient", torn_groups=None, same_within=6, same_across=None),
        "tags": (
            TagCount(name="PatientName (0010,0010)", kind="person", files=None, refuses=True),
            TagCount(name="StudyDate (0008,0020)", kind="date", files=7, refuses=False),
        ),
        "camera_notes": {},
        "shape": Shape(kinds={"DICOM": None, "PNG": None, "WebP": 20}, smallest="5 x 6", median_side=50,
                       largest="90 x 80", colour=20, grey=7),
        "leaves": ("Once: the site's name.", "Never: an image."),
    }  # fmt: skip
    return DataReport.model_validate({**told, **changes})


def test_the_text_says_verdict_reasons_counts_and_what_would_leave() -> None:
    text = report_text(_report())

    assert text.startswith("REFUSED. This data set cannot take part yet, for 1 reason(s).\n")
    for line in (
        "Why it is refused, and what to do",
        "  - DICOM files tell who the patients are: PatientName (0010,0010) in fewer than 5 file(s).",
        "  - Some file(s) or row(s) cannot be used and are left out; --names lists them.",
        "  class       train  val",
        "  mel         12     *",
        "  all         24     *",
        "  - Classes with at least 5 images: mel.",
        "  - 1 word(s) without a class: rows 3, 5.",
        "  - fewer than 5 image(s) are left out by the label map.",
        "  - Kept together by patient; patients or lesions in more than one split: fewer than 5.",
        "  - The very same picture in more than one split: fewer than 5; copies in one: 6.",
        "  - * DICOM, * PNG, 20 WebP.",
        "  - Pixels: 5 x 6 to 90 x 80, median shorter side 50.",
        "  - 20 in colour, 7 grey.",
        "  image file is missing  fewer than 5  --names lists them",
        "  PatientName (0010,0010)  person  fewer than 5  refused",
        "  StudyDate (0008,0020)    date    7             told",
        "  - Never: an image.",
    ):
        assert line in text.splitlines(), line


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"verdict": "usable", "reasons": ()}, "USABLE. This data set can take part as it is."),
        (
            {"verdict": "usable", "reasons": (), "phantom": True},
            "USABLE. This phantom (drawn images, no patient) can take part as it is.",
        ),
    ],
)
def test_a_usable_set_is_said_to_be_so_and_a_phantom_to_be_one(changes: dict[str, object], verdict: str) -> None:
    text = report_text(_report(**changes))

    assert text.splitlines()[0] == verdict
    assert "Why it is refused" not in text


def test_what_there_is_none_of_has_no_table() -> None:
    bare = _report(splits=(), unread=(), tags=(), warnings=(), shape=Shape())

    text = report_text(bare)

    assert "No files of pictures to look at." in text
    assert "hidden" not in text
    for title in ("What to look at", "Cannot be used", "DICOM attributes"):
        assert title not in text
    assert report_html(bare).count("<table>") == 0


def test_the_page_says_the_same_escaped_and_needs_nothing_from_outside() -> None:
    page = report_html(_report())

    assert page.startswith("<!doctype html>")
    assert page.endswith("</body></html>\n")
    assert '<p class="verdict refused">REFUSED.' in page
    assert "<script>" not in page
    assert "&lt;script&gt;nv" in page
    assert "<tr><td>mel</td><td>12</td><td>*</td></tr>" in page
    assert "POPMI 1.2.3." in page
    for word in ("http", "src=", "href=", "url("):
        assert word not in page


def test_the_json_is_the_whole_report() -> None:
    report = _report()

    assert DataReport.model_validate_json(report_json(report)) == report
    assert json.loads(report_json(report))["splits"][1] == {"split": "val", "images": None, "classes": [None, None]}


def test_the_list_with_names_says_first_that_it_stays() -> None:
    entries = (
        LocalDetail(row=2, file="anna.png", what="image file is missing"),
        LocalDetail(row=None, file="", what="word without a class: 'scar' in 2 row(s): rows 3, 5"),
    )

    assert details_text(LocalDetails(entries=entries)).splitlines() == [
        "STAYS AT THIS SITE: holds file names and the site's own words. Do not send it.",
        "",
        "row  file      what",
        "2    anna.png  image file is missing",
        "     -         word without a class: 'scar' in 2 row(s): rows 3, 5",
    ]

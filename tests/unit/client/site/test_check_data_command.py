"""`popmi site check-data`: it hands the site's own description to the check and shows what comes back."""

from __future__ import annotations

import sys
import types

import pytest
from site_parts import CLASSES, make_kit
from typer.testing import CliRunner

from client.site.commands import app
from client.site.enrol import enrol
from client.site.home import SiteHome


class Found:
    """What a check returns, as far as the command looks at it."""

    def __init__(self, verdict: str) -> None:
        unread = [types.SimpleNamespace(reason="DICOM has 2 frames, expected one", files=None)]
        told = {"reasons": ("rows 3, 5",) if verdict == "refused" else (), "warnings": ("w",), "unread": unread}
        self.report, self.details = types.SimpleNamespace(verdict=verdict, images=3, **told), "IMG_17.png"


@pytest.fixture
def asked(monkeypatch) -> list[tuple]:
    """Put a check in place that only remembers how it was called."""
    calls: list[tuple] = []

    def examine(*given, **named):
        calls.append((given, named))
        return Found("refused" if "broken" in given[0] else "usable")

    check, page = types.ModuleType("client.site.datacheck"), types.ModuleType("client.site.datapage")
    check.examine = examine
    page.report_text = lambda report: f"{report.images} images"
    page.report_json = lambda report: f'{{"images": {report.images}}}'
    page.report_html = lambda report: f"<p>{report.images}</p>"
    page.details_text = str
    monkeypatch.setitem(sys.modules, check.__name__, check)
    monkeypatch.setitem(sys.modules, page.__name__, page)
    return calls


@pytest.fixture
def home(tmp_path):
    (tmp_path / "words.csv").write_text("Muttermal,nv\n")
    made = SiteHome(tmp_path / "site")
    enrol(made, make_kit(), data=str(tmp_path / "images"), label_map=tmp_path / "words.csv")
    return made


def test_the_check_gets_data_classes_words_image_size_and_the_planned_run(asked, home, tmp_path):
    done = CliRunner().invoke(app, ["check-data", "--home", str(home.folder)])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == "3 images"
    assert asked == [
        (
            (str(tmp_path / "images"), CLASSES, tmp_path / "words.csv", 16),
            {"site": "north", "config": home.kit().config},
        )
    ]
    entry = list(home.audit.entries())[-1]
    assert entry.event == "data.checked"
    assert entry.details == {
        "verdict": "usable",
        "reasons": [],
        "warnings": ["w"],
        "unusable": {"DICOM has 2 frames, expected one": "fewer than 5"},
    }


def test_the_report_is_also_a_page_and_json(asked, home, tmp_path):
    page = tmp_path / "report.html"
    done = CliRunner().invoke(app, ["check-data", "--json", "--html", str(page), "--home", str(home.folder)])
    assert done.stdout.strip() == '{"images": 3}'
    assert page.read_text() == "<p>3</p>"


def test_a_page_that_cannot_be_written_is_said_at_once(asked, home, tmp_path):
    done = CliRunner().invoke(
        app, ["check-data", "--html", str(tmp_path / "no" / "x.html"), "--home", str(home.folder)]
    )
    assert "there is no folder" in str(done.exception)
    assert asked == []
    done = CliRunner().invoke(app, ["check-data", "--html", str(tmp_path), "--home", str(home.folder)])
    assert f"cannot write {tmp_path}: Is a directory" in str(done.exception)


def test_names_do_not_spoil_json(asked, home):
    done = CliRunner().invoke(app, ["check-data", "--names", "--json", "--home", str(home.folder)])
    assert done.stdout.strip() == '{"images": 3}'
    assert "IMG_17" in done.stderr


def test_names_are_shown_only_when_asked_for(asked, home):
    assert "IMG_17" not in CliRunner().invoke(app, ["check-data", "--home", str(home.folder)]).output
    assert "IMG_17" in CliRunner().invoke(app, ["check-data", "--names", "--home", str(home.folder)]).output


def test_data_that_cannot_be_used_end_with_three(asked, home):
    enrol(home, make_kit(), data="broken")
    assert CliRunner().invoke(app, ["check-data", "--home", str(home.folder)]).exit_code == 3
    assert list(home.audit.entries())[-1].details["reasons"] == ["rows 3, 5"]

"""Cases 12 and 21 to 24: clocks, spent budgets, data that cannot be used."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from stage import BAD, GOOD, ROOT, Stage

sys.path.append(str(ROOT / "tests" / "support"))
from small_hospital import swap_for_dicom, write_hospital

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
SKEWS = (-400, 10)
"""Seconds; Flower refuses nodes more than 5 s ahead or 300 s behind."""


def clock_skew(stage: Stage) -> None:
    """Case 12: a site's clock is off, for the doctor and for a node that runs; then it is right again."""
    machine, home = stage.machine, stage.machine.site(BAD)
    if FAKETIME is None:
        raise RuntimeError("libfaketime is not installed (Debian: apt-get install faketime)")
    machine.stop(BAD)
    node_log = home.processes / "node.log"
    for skew in SKEWS:
        stage.mark()
        wrong = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": f"{skew:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        done = machine.popmi("site", "doctor", "--home", str(home.folder), expect=None, env=wrong)
        lines = done.stdout.splitlines()
        place = next((n for n, line in enumerate(lines) if " clock " in line), 0)
        before = len(node_log.read_text())
        machine.run_site(BAD, env=wrong)
        machine.until(lambda start=before: len(node_log.read_text()) > start + 100, "the node is refused", 120)
        time.sleep(5)
        online = BAD in machine.online()
        machine.stop(BAD)
        stage.note(
            "12",
            f"a clock off by {skew:+d} s",
            "libfaketime around `popmi site doctor` and `popmi site run`",
            " ".join(lines[place : place + 2]),
            "yes; the site is not on line until its clock is right",
            good="FAILED" in lines[place] and not online,
            audit=[stage.event("doctor", at=home, says="clock")],
        )
    begun = time.monotonic()
    machine.run_site(BAD)
    machine.until(lambda: BAD in machine.online(), "the site with the right clock on line", 200, every=4.0)
    seconds = time.monotonic() - begun
    stage.note(
        "12",
        "the clock is right again",
        "the site started anew",
        "on line",
        "yes",
        good=True,
        audit=None,
        seconds=seconds,
    )


def budget_spent(stage: Stage) -> None:
    """Case 21: a site has spent its privacy budget in an earlier run; the others go on."""
    machine = stage.machine
    privacy = {"privacy": {"target_epsilon": 8.0, "target_delta": 1e-3}, "rounds": 2}
    machine.begin("budget-1", {**privacy, "sites": [BAD]})
    first = stage.finish("budget-1", 900)
    machine.begin("budget-2", {**privacy, "sites": [GOOD, BAD]})
    second = stage.finish("budget-2", 900)
    mine = next(row for row in stage.site_rows("budget-2") if row.site == BAD)
    others = {row.outcome for row in stage.site_rows("budget-2") if row.site != BAD}
    stage.note(
        "21",
        "a privacy budget that is spent",
        f"a run on one site alone took it ({first}); then a run on this one and another",
        f"{mine.outcome}: {mine.reason}",
        f"yes, without the site; {second}",
        good=mine.outcome == "stopped" and others == {"ok"} and second == "finished",
        audit=[stage.event("site.stopped", run="budget-2", site=BAD)],
    )


def data_that_cannot_be_used(stage: Stage) -> None:
    """Cases 22 to 24: `popmi site check-data` on a hospital's folder, and what the operator sees in a run."""
    machine = stage.machine
    places = {"22": broken_table(machine.folder), "23": odd_files(machine.folder), "24": named(machine.folder)}
    home = machine.enrol("hospital", "phantom:phantom_slide")
    told = {"22": "a table with three faults", "23": "a corrupt and a multi-frame DICOM file", "24": "DICOM with names"}
    for case, folder in places.items():
        config = home.config()
        stage.mark()
        home.write_config(config.model_copy(update={"data": str(folder)}))
        done = machine.popmi("site", "check-data", "--home", str(home.folder), expect=None)
        wanted = {"22": 3, "23": 0, "24": 3}[case]
        seen = " ".join(line.strip() for line in done.stdout.splitlines() if wanted_line(line))
        stage.note(
            case,
            told[case],
            "`popmi site check-data` before joining",
            seen or done.stdout[-400:],
            {0: "yes, without these files", 3: "the site stays out"}.get(done.returncode, f"code {done.returncode}"),
            good=done.returncode == wanted and "meier" not in seen,
            audit=[stage.event("data.checked", at=home)],
        )
    machine.run_site("hospital")
    machine.until(lambda: "hospital" in machine.online(), "the hospital on line", every=4.0)
    machine.begin("slow-hospital", {"rounds": 1, "limits": {"join": 20.0}})
    status = stage.finish("slow-hospital", 400)
    mine = next(row for row in stage.site_rows("slow-hospital") if row.site == "hospital")
    stage.note(
        "24",
        "the same hospital takes part",
        "`popmi site run` with the DICOM files that name patients",
        f"{mine.outcome}: {mine.reason}",
        f"yes, without it; {status}",
        good=mine.outcome == "failed" and status == "finished",
        audit=[stage.event(name, site="hospital", wait=2.0) for name in ("site.not_let_in", "site.failed")],
    )
    machine.stop("hospital")


def wanted_line(line: str) -> bool:
    """Return whether a line of a data report tells a trouble."""
    words = ("refused", "twice", "missing", "unknown", "word", "row", "frames", "damaged", "DICOM", "tag", "cannot")
    return any(word in line for word in words)


def broken_table(folder: Path) -> Path:
    """Return a hospital whose table names a picture that is not there, one twice, and an unknown finding."""

    def change(rows: list[dict[str, str]]) -> None:
        rows[3]["image"] = "gone"
        rows[5]["image"] = rows[4]["image"]
        rows[7]["diagnosis"] = "freckle"

    return write_hospital(folder / "table", change)


def odd_files(folder: Path) -> Path:
    """Return a hospital with a DICOM file cut off in its middle and one of three frames."""
    made = write_hospital(folder / "odd")
    broken = swap_for_dicom(made, "anna01")
    broken.write_bytes(broken.read_bytes()[:-60])
    swap_for_dicom(made, "anna02", NumberOfFrames=3)
    return made


def named(folder: Path) -> Path:
    """Return a hospital whose DICOM files say who the patients are, one of them also in its pixels."""
    made = write_hospital(folder / "named")
    swap_for_dicom(made, "anna01", PatientName="Meier^Anna", PatientBirthDate="19700101")
    swap_for_dicom(made, "anna02", BurnedInAnnotation="YES")
    return made

"""Cases 1 to 11, 16 and 17: what a broken site sends, code that waits, sites that all fail."""

from __future__ import annotations

import time
from pathlib import Path

from broken_site import ALL_FAIL, FAULTS, place_of
from stage import BAD, GOOD, THIRD, Stage

SAID = {
    "1": "NaN or infinite",
    "2": "the model moved by",
    "3": "has shape",
    "4": "head.weight|backdoor.weight",
    "5": "dtype float64",
    "6": "num_examples",
    "7": "cannot be decoded",
    "8": "too heavy|bytes, expected at most",
    "9": "cannot be decoded",
    "10": "expected run",
    "11": "copy of an earlier one",
}
"""What the reason of each case must say, one of several words."""
PICKLE_OPENED = Path("/tmp/popmi-pickle-was-opened")


def play(stage: Stage) -> None:
    """Let two broken sites send everything they have; one of them has not approved the code when the run begins."""
    machine = stage.machine
    PICKLE_OPENED.unlink(missing_ok=True)
    last = -(-len(FAULTS) // 2)
    machine.begin("payloads", {"rounds": last + 1, "sites": [GOOD, BAD, THIRD], "limits": {"join": 900.0}})
    stage.attempt("16", "code that a site has not approved", lambda: waiting_for_approval(stage))
    stage.finish("payloads", 2400)
    rows = stage.site_rows("payloads")
    with machine.record("payloads") as reader:
        outcomes = {row.server_round: row.outcome for row in reader.rounds(reader.run().id)}
    for row in rows:
        place = place_of(row.site, row.server_round)
        if place is not None:
            case, what, _ = FAULTS[place]
            right = row.outcome == "quarantined" and any(word in (row.reason or "") for word in SAID[case].split("|"))
            well = outcomes[row.server_round] == "ok"
            stage.note(
                case, what, f"approved code sent it in round {row.server_round}", f"{row.outcome}: {row.reason}",
                "yes, the round was made of the others" if well else "NO",
                good=right and well and not PICKLE_OPENED.exists(),
                audit=[stage.event("site.quarantined", site=row.site, round=row.server_round)],
            )  # fmt: skip
    after = [row.outcome for row in rows if row.server_round == last + 1]
    ended = machine.ended("payloads")
    stage.note(
        "1-11", "afterwards", "the sites send well-formed answers again", ", ".join(after), f"yes, run {ended}",
        good=after == ["ok"] * 3 and ended == "finished", audit=None,
    )  # fmt: skip


def waiting_for_approval(stage: Stage) -> None:
    """Case 16: the operator sees a site waiting, the hospital approves, the site joins without a restart."""
    machine, home = stage.machine, stage.machine.site(THIRD).folder
    machine.until(lambda: THIRD in machine.status()["waiting"], "a site that waits for approval", 400, every=4.0)
    seen = next(text for text in machine.status()["trouble"] if THIRD in text)
    at_site = machine.popmi("site", "status", "--home", str(home), expect=None).stdout
    begun = time.monotonic()
    machine.popmi("site", "approve", "--yes", "--summary", "--home", str(home))

    def trained() -> bool:
        return machine.done("payloads") > 0 and any(
            row.site == THIRD and row.outcome != "failed" for row in stage.site_rows("payloads")
        )

    machine.until(trained, "an answer of the site once its code is approved", 400)
    told = next(line.strip() for line in at_site.splitlines() if "waits for approval" in line)
    stage.note(
        "16", "code that a site has not approved", "a site ran without `popmi site approve`; approved while waiting",
        f"operator: {seen} / site: {told}", "yes; it took part after the approval, nothing restarted", good=True,
        audit=[
            stage.event("site.not_let_in", site=THIRD), stage.event("code.waiting", at=machine.site(THIRD)),
            stage.event("code.approved", at=machine.site(THIRD)),
        ],
        seconds=time.monotonic() - begun,
    )  # fmt: skip


def all_fail(stage: Stage) -> None:
    """Case 17: every site raises in every round."""
    stage.machine.begin(ALL_FAIL, {"rounds": 5})
    status = stage.finish(ALL_FAIL, 900)
    reason = stage.reason(ALL_FAIL)
    good = status == "failed" and all(site in reason for site in (GOOD, BAD)) and "4711" not in reason
    stage.note(
        "17", "all sites fail", "every site's code raised in every round, quoting a file name", reason,
        "no: run FAILED after 3 empty rounds" if status == "failed" else f"NO: {status}", good=good,
        audit=[stage.event("round.void", run=ALL_FAIL), stage.event("run.failed", run=ALL_FAIL)],
    )  # fmt: skip

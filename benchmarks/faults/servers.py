"""Cases 18 to 20, and what else can be killed or run full: checkpoints, disks, databases, the gateway, sites."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from stage import BAD, GOOD, THIRD, Stage, fill, make_room, small_disk

from popmi_core.audit import AuditLog
from popmi_core.errors import AuditError

SLOW_RUN = {"rounds": 4}


def too_few(stage: Stage) -> None:
    """Case 18: a run waits for sites that do not come, and ends naming them."""
    machine = stage.machine
    machine.stop(BAD)
    begun = time.monotonic()
    machine.begin("too-few", {"min_sites": 2, "sites": [GOOD, BAD], "limits": {"join": 20.0}})
    status = stage.finish("too-few", 300)
    reason = stage.reason("too-few")
    machine.run_site(BAD)
    machine.until(lambda: BAD in machine.online(), "the site back on line", every=4.0)
    stage.note(
        "18",
        "too few sites",
        "one of two sites was not there; limits.join = 20 s",
        reason,
        "no: it waited, then FAILED" if status == "failed" else f"NO: {status}",
        good=status == "failed" and BAD in reason,
        audit=[stage.event("run.failed", run="too-few")],
        seconds=time.monotonic() - begun,
    )


def corrupt_checkpoint(stage: Stage) -> None:
    """Case 19: the newest checkpoint is damaged, then the server app is killed."""
    machine, run = stage.machine, "slow-corrupt"
    machine.begin(run, SLOW_RUN)
    machine.until(lambda: machine.done(run) >= 2, "two rounds", 400)
    machine.kill("server app")
    done = machine.done(run)
    newest = machine.home.run_folder(run) / "models" / f"round-{done:03d}.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 0xFF
    newest.write_bytes(content)
    begun = time.monotonic()
    machine.until(lambda: "Going on from the checkpoint" in stage.diary(run), "the fall back is told", 400)
    seconds = time.monotonic() - begun
    seen = next(line for line in stage.diary(run).splitlines() if "Going on from the checkpoint" in line)
    status = stage.finish(run)
    stage.note(
        "19",
        "a corrupt newest checkpoint",
        f"one byte of round {done}'s model changed, server app killed",
        seen,
        f"yes, from round {done - 1}; run {status}",
        good=status == "finished" and f"round {done - 1}" in seen,
        audit=[stage.event("run.warning", run=run, says="checkpoint")],
        seconds=seconds,
    )


def disk_full(stage: Stage, where: str) -> None:
    """Case 20: no room for the model, the record or the sites' answers; then there is room again."""
    machine, run = stage.machine, f"slow-full-{where}"
    folder = machine.home.run_folder(run)
    place = folder if where == "record" else folder / {"model": "models", "answers": "incoming"}[where]
    place.mkdir(parents=True)
    with small_disk(place, 6000), disks_beside(folder, where):
        machine.begin(run, SLOW_RUN)
        machine.until(lambda: machine.done(run) >= 1, "the first round", 400)
        before = stage.server_log("runner").count("paused:")
        filler = fill(place)
        begun = time.monotonic()
        machine.until(lambda: stage.server_log("runner").count("paused:") > before, "the run pauses", 200)
        time.sleep(5)
        seen = [line for line in stage.server_log("runner").splitlines() if "paused:" in line][-1]
        done, alive = machine.done(run), not machine.ended(run)
        time.sleep(15)
        waited = machine.done(run) == done and not machine.ended(run)
        halves = list((folder / "models").glob("*.tmp*"))
        filler.unlink()
        make_room(place, 60000)
        status = stage.finish(run)
        stage.note(
            "20",
            f"disk full: {where}",
            f"a disk of its own, filled to the last byte after round {done}",
            seen[seen.find("paused:") :],
            f"paused {time.monotonic() - begun:.0f} s or less, then on by itself; {status}",
            good=alive and waited and status == "finished" and not halves,
            audit=[stage.event("run.paused", run=run)],
        )
        copied = sorted(path.name for path in (folder / "models").glob("*.safetensors"))
        assert len(copied) == SLOW_RUN["rounds"], copied


@contextmanager
def disks_beside(folder: Path, where: str) -> Iterator[None]:
    """Give what lies below a full run folder disks of its own, so that the record alone has no room."""
    with ExitStack() as disks:
        for name in ("models", "incoming", "state") if where == "record" else ():
            disks.enter_context(small_disk(folder / name, 60000))
        yield


def audit_full(stage: Stage) -> None:
    """Case 20: no room for the audit log, at the server and at a site."""
    machine, run = stage.machine, "slow-full-audit"
    with full_file(machine.home.audit_file):
        begin = machine.popmi(
            "server", "start", str(machine.write_config("full.toml", SLOW_RUN)), "--name", run, expect=None
        )
    stage.note(
        "20",
        "disk full: the server's audit log",
        "`popmi server start` while the log's disk was full",
        begin.stderr,
        "nothing was begun",
        good=begin.returncode == 9 and machine.summary(run) is None,
        # A log that is full can hold no line of it.
        audit=[],
    )
    run = "slow-full-site"
    machine.begin(run, SLOW_RUN)
    machine.until(lambda: machine.done(run) >= 1, "the first round", 400)
    with full_file(machine.site(BAD).audit.path):
        stage.wait_rounds(run, 1)
    status = stage.finish(run)
    mine = [row for row in stage.site_rows(run) if row.site == BAD]
    seen = next((row.reason or "" for row in mine if row.outcome != "ok"), "")
    stage.note(
        "20",
        "disk full: a site's audit log",
        "the log's disk full for a round or two",
        seen,
        f"yes, without the site, and with it again; {status}",
        good="audit log" in seen and mine[-1].outcome == "ok" and status == "finished",
        audit=[stage.event("site.failed", run=run, site=BAD, says="audit log")],
    )


@contextmanager
def full_file(path: Path) -> Iterator[None]:
    """Let a file lie on a full disk; afterwards it is where it was, with what was written meanwhile."""
    place = path.with_name(f".{path.name}.disk")
    with small_disk(place, 400):
        inside = place / path.name
        inside.write_bytes(path.read_bytes())
        filler = fill(place)
        subprocess.run(["mount", "--bind", str(inside), str(path)], check=True)
        try:
            # A file's last page has room for lines beside a disk that has none.
            with contextlib.suppress(AuditError):
                while True:
                    AuditLog(path).append("drill.padding")
            yield
        finally:
            written = inside.read_bytes()
            subprocess.run(["umount", "-l", str(path)], check=True)
            path.write_bytes(written)
            # What is left on a small disk is kept when it goes.
            filler.unlink()
            inside.unlink()
    place.rmdir()


def database_away(stage: Stage) -> None:
    """The record's database does not let itself be written: another process holds it."""
    machine, run = stage.machine, "slow-locked"
    machine.begin(run, SLOW_RUN)
    machine.until(lambda: machine.done(run) >= 1, "the first round", 400)
    before = stage.server_log("runner").count("paused:")
    holder = sqlite3.connect(machine.home.run_folder(run) / "record.sqlite", timeout=60, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    machine.until(lambda: stage.server_log("runner").count("paused:") > before, "the run pauses", 200)
    seen = [line for line in stage.server_log("runner").splitlines() if "paused:" in line][-1]
    holder.execute("ROLLBACK")
    holder.close()
    status = stage.finish(run)
    stage.note(
        "database",
        "SQLite held by another process",
        "an open write transaction on the record",
        seen[seen.find("paused:") :],
        f"paused, then on by itself; {status}",
        good=status == "finished",
        audit=[stage.event("run.paused", run=run)],
    )


def gateway_killed(stage: Stage) -> None:
    """The gateway is killed in the middle of a round."""
    machine, run = stage.machine, "slow-gateway"
    machine.begin(run, SLOW_RUN)
    machine.until(lambda: machine.done(run) >= 1, "the first round", 400)
    machine.kill("gateway")
    seconds = stage.wait_rounds(run, 1)
    status = stage.finish(run)
    outcomes = {row.outcome for row in stage.site_rows(run)}
    stage.note(
        "gateway",
        "gateway killed (SIGKILL)",
        "in the middle of a round",
        f"all outcomes of the run: {', '.join(outcomes)}",
        f"yes, round done after {seconds:.0f} s; {status}",
        good=status == "finished" and outcomes == {"ok"},
        audit=[stage.event(name, run=run, wait=1.0) for name in ("site.unreachable", "site.failed", "run.paused")],
        seconds=seconds,
    )


def sites_killed(stage: Stage) -> None:
    """A third of the sites is killed whole; later it comes back."""
    machine, run = stage.machine, "slow-sites"
    machine.begin(run, {"rounds": 7, "limits": {"quorum": 2, "grace": 5.0, "join": 120.0}})
    machine.until(lambda: machine.done(run) >= 1, "the first round", 400)
    killed = machine.done(run)
    machine.kill(BAD)
    stage.wait_rounds(run, 2)
    back = machine.done(run)
    begun = time.monotonic()
    machine.run_site(BAD)

    def trains() -> bool:
        return any(row.server_round > back and row.site == BAD and row.outcome == "ok" for row in stage.site_rows(run))

    machine.until(lambda: trains() or machine.ended(run), "the site trains again", 400)
    seconds, again = time.monotonic() - begun, trains()
    status = stage.finish(run)
    mine = [row for row in stage.site_rows(run) if row.site == BAD and row.outcome != "ok"]
    with machine.record(run) as reader:
        outcomes = [row.outcome for row in reader.rounds(reader.run().id)]
    stage.note(
        "sites",
        "a third of the sites killed (1 of 3)",
        f"`popmi site run` SIGKILLed after round {killed}, started anew after round {back}",
        (mine[0].outcome + ": " + (mine[0].reason or "")) if mine else "",
        f"yes, {outcomes.count('ok')} of 7 rounds; the site trained again {seconds:.0f} s after its start",
        good=status == "finished"
        and again
        and outcomes == ["ok"] * 7
        and {GOOD, THIRD} <= {row.site for row in stage.site_rows(run)},
        audit=[stage.event(f"site.{row.outcome}", run=run, site=BAD) for row in mine[:1]],
        seconds=seconds,
    )

"""The database of the record is PostgreSQL and is killed in the middle of a run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError
from stage import GOOD, LIGHT, Machine, Stage, broken_tree

from machine import free_ports  # isort: skip
from popmi_core.errors import PopmiError
from server.store import RunReader


class Database:
    """A PostgreSQL server of its own in a folder, run by the user ``postgres`` (it refuses root)."""

    def __init__(self, folder: Path) -> None:
        self.folder, (self.port,) = folder, free_ports(1)
        self.url = f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"

    def make(self) -> None:
        """Make an empty database."""
        self.folder.mkdir(parents=True)
        for place in (self.folder, *self.folder.parents[:3]):
            if str(place).startswith("/tmp/"):
                place.chmod(0o755)
        shutil.chown(self.folder, "postgres")
        self._as_postgres("initdb", "-A", "trust", "-D", str(self.folder / "data"))

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._as_postgres("pg_ctl", "-w", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-o",
                          f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1", "start")  # fmt: skip

    def kill(self) -> None:
        """Kill it without warning, and all its children."""
        pid = int((self.folder / "data" / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, signal.SIGKILL)
        time.sleep(2)

    def stop(self) -> None:
        """End it."""
        subprocess.run(self._command("pg_ctl", "-m", "immediate", "-D", str(self.folder / "data"), "stop"), check=False)

    def _as_postgres(self, *words: str) -> None:
        done = subprocess.run(self._command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
        if done.returncode:
            raise RuntimeError(f"{words[0]}: {done.stderr.decode(errors='replace')}")

    def _command(self, *words: str) -> list[str]:
        found = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"))), None)
        if found is None:
            raise RuntimeError("no PostgreSQL on this machine (Debian: apt-get install postgresql)")
        return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", str(found / words[0]), *words[1:]]


def killed(stage: Stage) -> None:
    """Kill the database in the middle of a run, and start it again after twenty seconds."""
    folder = stage.machine.folder.parent / "with-postgres"
    database = Database(folder / "database")
    database.make()
    database.start()
    tree = stage.machine.tree if stage.machine.tree.exists() else broken_tree(folder / "tree")
    with Machine(
        folder / "federation", {GOOD: f"phantom:{GOOD}"}, LIGHT, tree=tree, env={"POPMI_DATABASE": database.url}
    ) as machine:
        try:
            play(Stage(machine), stage, database)
        finally:
            machine.end()
            database.stop()


def play(there: Stage, stage: Stage, database: Database) -> None:
    """Run, kill, start again, run on."""
    machine, run = there.machine, "slow-database"

    def done() -> int:
        try:
            with RunReader(database.url) as reader:
                return reader.run().rounds_done
        except (PopmiError, SQLAlchemyError):
            # The database is away.
            return 0

    def ended() -> str:
        with RunReader(database.url) as reader:
            status = reader.run().status
        return status if status in ("finished", "failed") else ""

    machine.set_up()
    machine.all_up()
    machine.begin(run, {"rounds": 4})
    machine.until(lambda: done() >= 2, "two rounds", 400)
    before = done()
    database.kill()
    time.sleep(20)
    seen = [line for line in there.server_log("runner").splitlines() if "paused" in line or "RunError" in line]
    database.start()
    begun = time.monotonic()
    machine.until(lambda: done() > before, "a round after the database is back", 300)
    seconds = time.monotonic() - begun
    machine.until(ended, "the end of the run", 400)
    stage.note(
        "database",
        "PostgreSQL killed (SIGKILL)",
        f"after round {before}, away for 20 s",
        seen[-1] if seen else "nothing",
        f"yes, next round {seconds:.0f} s after it was back; {ended()}",
        good=ended() == "finished",
        audit=[there.event("run.paused", run=run)],
        seconds=seconds,
    )

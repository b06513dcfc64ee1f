"""Do the pages stay fluent? 1,000 rounds of 20 sites, 50 viewers, a round every two seconds; SQLite and PostgreSQL.

    python benchmarks/dashboard/load.py --out docs/results/dashboard_load

Starts the real `popmi serve` and, for the second case, a PostgreSQL of its own; viewers (viewers.py) and the writer
(filling.py) are processes of their own. Needs PostgreSQL's programs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from filling import fill, fill_centre
from page import report
from pageserver import Pages, cold_start

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

import throwaway_postgres  # noqa: E402

HERE = Path(__file__).parent
PROBE_PAUSE = 0.05
SETTLE_SECONDS = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--databases", default="sqlite,postgresql")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--viewers", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long rounds are written")
    parser.add_argument("--every", type=float, default=2.0, help="seconds from round to round")
    parser.add_argument("--from-json", action="store_true", help="run nothing; print the page from OUT.json again")
    parser.add_argument("--out", type=Path, required=True, help="path without ending; .json and .md are written")
    given = parser.parse_args()
    told = given.out.with_suffix(".json")
    if not given.from_json:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        found: dict[str, Any] = {
            "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "rounds": given.rounds, "sites": 20,
            "viewers": given.viewers, "seconds": given.seconds, "every": given.every, "assets": assets(),
            "cases": {},
        }  # fmt: skip
        for name in given.databases.split(","):
            found["cases"][name] = case(name, given)
            told.write_text(json.dumps(found, indent=1) + "\n")
            print(json.dumps(found["cases"][name]), flush=True)
    given.out.with_suffix(".md").write_text(report(json.loads(told.read_text())))


def assets() -> list[dict[str, Any]]:
    """Return what each file that a page loads weighs, bytes, as it lies there and compressed."""
    folder = ROOT / "server" / "dashboard" / "static"
    files = sorted(item for item in folder.rglob("*") if item.suffix in (".css", ".js", ".svg"))
    return [
        {
            "name": str(item.relative_to(folder)),
            "bytes": item.stat().st_size,
            "gzip": len(gzip.compress(item.read_bytes())),
        }
        for item in files
    ]


def case(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Fill a database, serve it, look at it while it grows; return all that was measured."""
    with tempfile.TemporaryDirectory(prefix="pages") as home, databases(name, Path(home)) as (long, short):
        folder = Path(home)
        begun = time.monotonic()
        run_id = fill(long, "long", given.rounds, planned=5000)
        other = fill(short, "short", max(1, given.rounds // 10), planned=5000)
        centre = folder / "centre.sqlite" if name == "sqlite" else long
        secrets = fill_centre(centre, folder, "long", given.rounds, given.viewers + 1)
        filled = time.monotonic() - begun
        pages = Pages(folder, None if name == "sqlite" else str(long))
        (folder / "cookies").write_text("\n".join(pages.sign_in(secrets)[1:]))
        keys = ("long", "short") if name == "sqlite" else (str(run_id), str(other))
        row: dict[str, Any] = {"fill_seconds": filled, "megabytes": size(long) / 1e6}
        row["cold"] = cold_start(pages, f"/runs/{keys[0]}")
        with pages.running():
            row |= loaded(pages, keys, str(long), run_id, given)
    return row


@contextmanager
def databases(name: str, home: Path) -> Iterator[tuple[str | Path, str | Path]]:
    """Hand out where the long and the short run are written."""
    if name == "sqlite":
        for run in ("long", "short"):
            (home / "runs" / run).mkdir(parents=True)
        yield tuple(home / "runs" / run / "record.sqlite" for run in ("long", "short"))  # type: ignore[misc]
        return
    with throwaway_postgres.running() as address:
        yield address, address


def size(database: str | Path) -> int:
    """Return the bytes that a database takes."""
    if isinstance(database, Path):
        return database.stat().st_size
    from sqlalchemy import create_engine

    engine = create_engine(database)
    with engine.connect() as connection:
        found: int = connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one()
    engine.dispose()
    return found


def loaded(
    pages: Pages, keys: tuple[str, str], database: str, run_id: int, given: argparse.Namespace
) -> dict[str, Any]:
    """Have viewers look while rounds are written; return delays, seconds of every page, memory and processor time."""
    out, diary = pages.folder / "seen.json", pages.folder / "written.jsonl"
    started: list[subprocess.Popen[bytes]] = []
    try:
        before = pages.cpu_seconds()
        words = ("viewers.py", pages.url, f"/runs/{keys[0]}", pages.folder / "cookies", out)
        started.append(viewers := _start(*words, stdin=subprocess.PIPE))
        assert viewers.stdout is not None
        if viewers.stdout.readline().strip() != b"ready":
            raise RuntimeError("the viewers did not get their pages; their words are above")
        row: dict[str, Any] = {"opened_processor": pages.cpu_seconds() - before}
        time.sleep(SETTLE_SECONDS)
        count = round(given.seconds / given.every)
        before, begun = pages.cpu_seconds(), time.monotonic()
        probe = Probe(pages, paths(keys))
        probe.start()
        started.append(writer := _start("filling.py", database, run_id, given.rounds + 1, count, given.every, diary))
        if writer.wait() != 0:
            raise RuntimeError("the writer ended with an error; its words are above")
        row |= {"processor": pages.cpu_seconds() - before, "wall": time.monotonic() - begun}
        row["load"] = round(os.getloadavg()[0], 1)
        time.sleep(SETTLE_SECONDS)
        row["pages"] = probe.end()
        viewers.communicate(timeout=200)
    finally:
        for process in started:
            process.kill()
    row |= delays(json.loads(out.read_text()), [json.loads(line) for line in diary.read_text().splitlines()])
    return row | {"megabytes_peak": pages.peak_megabytes()}


def paths(keys: tuple[str, str]) -> dict[str, str]:
    """Return the pages to ask for, by name."""
    run, other = keys
    return {
        "runs": "/",
        "run": f"/runs/{run}",
        "series": f"/runs/{run}/series?split=val",
        "all sections of the run": f"/runs/{run}/live?split=val",
        "compare": f"/compare?run={run}&run={other}",
        "sites": "/sites",
        "site": "/sites/site03",
        "models": "/models",
        "models of a run": f"/models?run={run}",
        "model": f"/models/{run}/500",
        "audit": "/audit",
        "act": "/act",
        "start a run": "/act/start",
        "order": "/act/orders/1",
        "my account": "/account",
        "accounts": "/accounts",
        "run in the API": f"/api/v1/runs/{run}",
        "Prometheus": "/metrics",
    }


class Probe(threading.Thread):
    """Asks for one page after the other beside the viewers: the seconds are the server's, not a busy client's."""

    def __init__(self, pages: Pages, wanted: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self._pages, self._wanted = pages, wanted
        self._ended = threading.Event()
        self._took: dict[str, list[float]] = defaultdict(list)
        self._told: dict[str, dict[str, Any]] = {}

    def run(self) -> None:
        """Ask until the end is told."""
        headers = {"Cookie": self._pages.cookie} if self._pages.cookie else {}
        with httpx.Client(base_url=self._pages.url, timeout=120.0, headers=headers) as client:
            while not self._ended.is_set():
                for name, path in self._wanted.items():
                    begun = time.perf_counter()
                    try:
                        answer = client.get(path)
                        told = {"status": answer.status_code, "bytes": answer.num_bytes_downloaded}
                    except httpx.HTTPError as error:
                        told = {"status": type(error).__name__, "bytes": 0}
                    self._took[name].append(time.perf_counter() - begun)
                    self._told[name] = told
                    time.sleep(PROBE_PAUSE)

    def end(self) -> dict[str, Any]:
        """Stop; return each page's percentiles, seconds."""
        self._ended.set()
        self.join()
        return {name: spread(took) | self._told[name] for name, took in self._took.items()}


def delays(seen: dict[str, Any], written: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how long after its commit a round was told to, and shown by, each viewer; and what viewers fetched."""
    events, shown, missed = [], [], 0
    for viewer in seen["viewers"]:
        for row in written:
            heard = next((each for each in viewer["events"] if each >= row["committed"]), None)
            if heard is not None:
                events.append(heard - row["committed"])
            # A page drawn for a later round shows the earlier one as well.
            on_page = [at for number, at in viewer["shown"].items() if int(number) >= row["round"]]
            missed += not on_page
            shown += [max(0.0, min(on_page) - row["committed"])] if on_page else []
    return {
        "written": len(written),
        "writing": spread([row["committed"] - row["begun"] for row in written]),
        "event": spread(events),
        "shown": spread(shown),
        "not_shown": missed,
        "fetched": {kind: spread(took) | {"bytes": seen["bytes"][kind]} for kind, took in seen["fetched"].items()},
        "answers": seen["status"],
        "trouble": seen["trouble"],
        "viewers_processor": seen["processor"],
        "viewers_late": spread(seen["loop_late"]),
    }


def spread(values: list[float]) -> dict[str, Any]:
    """Return count, median, 95th percentile and maximum."""
    ordered = sorted(values)
    if not ordered:
        return {"count": 0}
    return {
        "count": len(ordered),
        "p50": round(median(ordered), 4),
        "p95": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 4),
        "max": round(ordered[-1], 4),
    }


def _start(program: str, *words: object, **how: Any) -> subprocess.Popen[bytes]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / program), *map(str, words)]
    # A session of its own, as services have: Linux shares the processor out by session.
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, start_new_session=True, **how)


if __name__ == "__main__":
    main()

"""Many independent runs on a few cores: in their order, resumable, and with an end."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def run_all(run: Callable[[T, Path], str], wanted: Sequence[T], runs: Path, *, jobs: int, minutes: float) -> None:
    """Run all in their order, ``jobs`` at a time, and print the line each returns; nothing begins after the minutes.

    What fails is told and does not stop the others. Workers stay, so that a data set is read once a worker.
    """
    until = time.monotonic() + 60 * minutes
    queue: Iterator[T] = iter(wanted)
    running: set[Future[str]] = set()
    # No fork: torch's threads do not survive one.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        while True:
            while len(running) < jobs and time.monotonic() < until:
                one = next(queue, None)
                if one is None:
                    break
                running.add(pool.submit(told, run, one, runs))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                print(future.result(), file=sys.stderr, flush=True)


def told(run: Callable[[T, Path], str], one: T, runs: Path) -> str:
    """Return the line of a run, or what went wrong in it."""
    import torch

    torch.set_num_threads(1)
    try:
        return run(one, runs)
    except Exception as error:
        return f"FAILED {one}: {type(error).__name__}: {error}\n{traceback.format_exc(limit=-3)}"


def write_whole(path: Path, text: str) -> None:
    """Write a file in one step: a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)

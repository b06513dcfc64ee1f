"""Tells the pages how the server is: the board of the centre, and the audit log's copy there.

Status, sites and models are looked at every ten seconds, for that asks gateway and SuperLink; the log is copied at
every look, a piece at a time. What has not changed is not written again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy.engine import Engine

from popmi_core.errors import PopmiError
from server.centre.board import card_key, kit_key, read_board, touch_board, write_board
from server.centre.trail import mirror, mirrored
from server.control.clocks import CLOCKS_FILE, Clock, read_clocks
from server.control.contract import Control
from server.control.home import ServerHome
from server.control.kits import post_kit
from server.control.modelfiles import ModelFiles, read_card
from server.control.pins import model_path, read_pins
from server.control.sites import view_sites
from server.control.status import server_status

log = logging.getLogger("popmi.keeper")
EVERY = 10.0
"""Seconds between two looks at everything but the audit log."""
PIECE = 1000
"""Lines that are copied at a time."""
CODE_SECONDS = 300.0
"""Seconds for which the hash of the installed code is taken as known."""


class Teller:
    """Tells the pages. One per server.

    Args:
        home: The server's home.
        control: The SuperLink.
        centre: Where it is told.
        code: Returns the hash of the code that is installed.
        refused: Where the gateway counts; its clocks lie beside. By default in the home.
        clock: Seconds since 1970 UTC.
    """

    def __init__(
        self,
        home: ServerHome,
        control: Control,
        centre: Engine,
        *,
        code: Callable[[], str],
        refused: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.home, self.control, self.centre = home, control, centre
        self._clocks = (refused or home.refused).with_name(CLOCKS_FILE)
        self._code, self._clock = code, clock
        self._looked, self._coded, self._hash = 0.0, 0.0, ""
        self._told: dict[str, str] = {}
        self._place, self._models_seen = LogPlace(), ModelFiles(home)

    def look(self) -> None:
        """Tell what is new.

        Raises:
            RunError: If the centre cannot be reached now.
            PopmiError: If the home or a record cannot be read now; what could be is told.
        """
        self.copy_log()
        now = self._clock()
        if now - self._looked < EVERY:
            return
        self._looked = now
        failed: list[PopmiError] = []
        for key, found in (("status", self._status), ("sites", self._sites), ("models", self._models),
                           ("plan", self._plan), ("audit", self._audit)):  # fmt: skip
            try:
                self._tell(key, found())
            except PopmiError as error:
                # One that cannot be looked at must not keep the others old.
                failed.append(error)
        if failed:
            raise failed[0]

    def copy_log(self) -> None:
        """Copy the audit log's new lines.

        Raises:
            RunError: If the centre cannot be reached now.
        """
        number, digest = mirrored(self.centre)
        if not self._place.known or number != self._place.number:
            # At the beginning, and when somebody took the copy out for it to be made anew.
            self._place.find(self.home.audit_file, number, digest)
        for piece in self._place.pieces(self.home.audit_file):
            mirror(self.centre, piece)

    def _status(self) -> dict[str, Any]:
        if self._clock() - self._coded >= CODE_SECONDS:
            self._hash, self._coded = self._code(), self._clock()
        status = asdict(server_status(self.home, self.control, self._hash, now=self._clock()))
        wanted = self.home.wanted()
        trouble = [*status["trouble"], *([f"audit log: {self._place.trouble}"] if self._place.trouble else [])]
        return {
            **status,
            "trouble": trouble,
            "wanted": None if wanted is None else wanted.model_dump(mode="json"),
            "pinned": {run: item.round for run, item in read_pins(self.home).items()},
        }

    def _sites(self) -> list[dict[str, Any]]:
        entries, clocks = self.home.sites(), read_clocks(self._clocks)
        found = []
        for view in view_sites(self.home, self.control):
            told, out = asdict(view), entries[view.name].excluded if view.name in entries else None
            clock: Clock | None = clocks.get(view.fingerprint or "")
            told |= {
                "excluded_by": None if out is None else out.by,
                "excluded_since": None if out is None else out.since,
                "clock_skew": None if clock is None else clock.skew,
                "clock_at": None if clock is None else clock.time,
            }
            found.append(told)
            kit = self.home.kits / f"{view.name}.zip"
            if view.state == "invited" and kit.is_file() and read_board(self.centre, kit_key(view.name)) is None:
                post_kit(self.centre, view.name, kit)
        return found

    def _models(self) -> dict[str, dict[str, Any]]:
        found = self._models_seen.look()
        for run, rounds in found.items():
            for number, told in rounds.items():
                digest = told["sha256"]
                if not told["here"] or digest is None or (key := card_key(digest)) in self._told:
                    continue
                card = read_card(model_path(self.home, run, int(number)))
                if card is not None:
                    self._tell(key, card)
        return found

    def _plan(self) -> dict[str, Any]:
        settings = self.home.settings()
        return {
            "project": settings.project,
            "classes": list(settings.classes),
            "config": settings.config.model_dump(mode="json", exclude_none=True),
            "sites": [name for name, entry in self.home.sites().items() if entry.state != "revoked"],
        }

    def _audit(self) -> dict[str, Any]:
        return {"lines": self._place.number, "trouble": self._place.trouble}

    def _tell(self, key: str, value: Any) -> None:
        told = hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
        if self._told.get(key) == told:
            touch_board(self.centre, key, clock=self._clock)
            return
        write_board(self.centre, key, value, clock=self._clock)
        self._told[key] = told


class LogPlace:
    """Up to where a log was copied: the line, and the byte behind it. ``trouble``: why nothing more can be copied."""

    def __init__(self) -> None:
        self.known, self.number, self.trouble = False, 0, ""
        self._byte = 0

    def find(self, path: Path, number: int, digest: str) -> None:
        """Go behind line ``number`` of the log, which must be the one with this hash."""
        self.known, self.number, self._byte, self.trouble = True, number, 0, ""
        last = b""
        try:
            with path.open("rb") as file:
                for _ in range(number):
                    last = file.readline()
                self._byte = file.tell()
        except FileNotFoundError:
            last = b""
        if number and not last.endswith(b"\n"):
            self.trouble = f"the log has fewer lines than the {number} that were copied before: its end was cut off"
        elif number and digest.encode() not in last:
            self.trouble = f"line {number} of the log is not the one that was copied before: it was written anew"

    def pieces(self, path: Path) -> Iterator[list[tuple[int, str]]]:
        """Hand out the whole lines behind the place with their numbers, so many at a time; go behind each piece.

        A piece that could not be kept is handed out again the next time: ask for the next only when it is.
        """
        if self.trouble:
            return
        try:
            with path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._byte:
                    self.trouble = f"the log is shorter than the {self.number} lines that were copied: it was cut off"
                    return
                file.seek(self._byte)
                while lines := [line for line in islice(file, PIECE) if line.endswith(b"\n")]:
                    first = self.number + 1
                    yield [(first + place, line[:-1].decode("utf-8", "replace")) for place, line in enumerate(lines)]
                    self.number += len(lines)
                    self._byte += sum(map(len, lines))
        except FileNotFoundError:
            if self.number:
                self.trouble = f"the log is gone, of which {self.number} lines were copied"

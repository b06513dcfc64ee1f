"""The models of all runs as the pages are told of them: which files are there, what the record says, what is pinned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from popmi_core.errors import PopmiError
from server.control.home import ServerHome
from server.control.pins import model_path, read_pins
from server.control.plans import run_names
from server.control.records import open_record

LONGEST_HEADER = 32_000_000
"""Bytes of a safetensors header beyond which it is none of ours."""
_LENGTH_BYTES = 8


@dataclass
class ModelFiles:
    """Looks at the models of all runs, and at those of a run again only when its record or its folder has changed.

    A model is a mapping of ``here`` (whether its file is there), ``size`` (bytes), ``sha256`` (as the record tells it),
    ``onnx`` (whether that file is there), and ``pin``.
    """

    home: ServerHome
    _held: dict[str, tuple[object, dict[str, dict[str, Any]]]] = field(default_factory=dict)

    def look(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return the models of each run by round.

        Raises:
            SetupError: If the file of pins is damaged.
        """
        pins, found = read_pins(self.home), dict[str, dict[str, dict[str, Any]]]()
        for run in run_names(self.home):
            pin = pins.get(run)
            found[run] = {
                number: {
                    **told,
                    "pin": None if pin is None or str(pin.round) != number else pin.model_dump(mode="json"),
                }
                for number, told in self._run(run).items()
            }
        return found

    def _run(self, run: str) -> dict[str, dict[str, Any]]:
        folder = self.home.run_folder(run) / "models"
        try:
            changed = folder.stat().st_mtime_ns
        except OSError:
            changed = 0
        try:
            with open_record(self.home, run) as found:
                if found is None:
                    return {}
                reader, summary = found
                stamp = (summary.id, summary.revision, changed)
                held = self._held.get(run)
                if held is not None and held[0] == stamp:
                    return held[1]
                digests = {row.server_round: row.model_sha256 for row in reader.rounds(summary.id)}
        except PopmiError:
            # Status tells of a record that cannot be read; what was known of its models stands.
            return self._held[run][1] if run in self._held else {}
        told = {str(number): self._model(run, number, digest) for number, digest in digests.items() if digest}
        self._held[run] = (stamp, told)
        return told

    def _model(self, run: str, number: int, digest: str) -> dict[str, Any]:
        path = model_path(self.home, run, number)
        try:
            size: int | None = path.stat().st_size
        except OSError:
            size = None
        onnx = path.with_suffix(".onnx").is_file()
        return {"here": size is not None, "size": size, "sha256": digest, "onnx": onnx}


def read_card(path: Path) -> Mapping[str, Any] | None:
    """Return the card that a safetensors file carries in its header; None where it has none that can be read."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if not 0 < length <= LONGEST_HEADER:
                return None
            card = json.loads(json.loads(file.read(length))["__metadata__"]["card"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return card if isinstance(card, dict) else None

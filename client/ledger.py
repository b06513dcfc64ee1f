"""The site's privacy account: what every round has cost, on disk before anything leaves.

One JSON file, rewritten atomically and flushed to the disk at every entry. Each entry carries the sha256 of itself and
of the one before, and a second small file remembers the last of them, so that a damaged, truncated, replaced or lost
ledger is noticed and nothing more is spent. The hashes have no key: they find accidents, not a malicious administrator.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from popmi_core.atomic import replace_atomically
from popmi_core.errors import PrivacyError

_FORMAT = "popmi-privacy-ledger/1"
_RESTORE = "Restore it from a backup; without one, these images must not be used with a privacy budget again."


class Entry(BaseModel):
    """One round of noisy training, as planned and as charged.

    ``epsilon`` is what the whole ledger has spent at ``target_delta`` once this entry is counted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    server_round: int = Field(ge=0)
    rounds: int = Field(ge=1, description="planned rounds of the run")
    num_examples: int = Field(ge=1)
    epochs: int = Field(ge=1)
    steps: int = Field(ge=1)
    sample_rate: float = Field(gt=0, le=1)
    noise_multiplier: float = Field(gt=0)
    max_grad_norm: float = Field(gt=0)
    target_epsilon: float = Field(gt=0)
    target_delta: float = Field(gt=0, lt=1)
    epsilon: float = Field(ge=0)


class Ledger:
    """The entries of one site's data set at ``path``; none where it was never opened.

    Args:
        path: The JSON file. It must outlive every run on these images.
        site: The site's name; a ledger of another site is refused.
        at_least: Number of entries the caller knows to have been made, so that a lost folder is noticed too.
    """

    def __init__(self, path: Path, *, site: str, at_least: int = 0) -> None:
        self.path, self.site, self.at_least = path, site, at_least

    def entries(self) -> tuple[Entry, ...]:
        """Return every entry, oldest first.

        Raises:
            PrivacyError: If the ledger is damaged, belongs to another site, or lacks entries it once had.
        """
        return tuple(entry for entry, _ in self._read())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes of this machine from reading and writing the ledger at the same time."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = self._beside(".lock").open("a")
        except OSError as error:
            raise self._unwritable(error) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def append(self, entry: Entry) -> None:
        """Add ``entry`` and return once it is on the disk. Call it inside ``locked``.

        Raises:
            PrivacyError: If the ledger cannot be read or written.
        """
        chain = self._read()
        digest = _digest(chain[-1][1] if chain else _genesis(self.site), entry)
        chain.append((entry, digest))
        records = [{**known.model_dump(), "sha256": proof} for known, proof in chain]
        try:
            # Ledger first: a crash between the two leaves the ledger ahead of its witness, which is the safe side.
            _write(self.path, {"format": _FORMAT, "site": self.site, "entries": records})
            _write(self._beside(".head"), {"entries": len(chain), "sha256": digest})
        except OSError as error:
            raise self._unwritable(error) from error

    def _read(self) -> list[tuple[Entry, str]]:
        expected, head = self._read_head()
        expected = max(expected, self.at_least)
        chain = self._verify(self._load(self.path)) if self.path.exists() else []
        if len(chain) < expected:
            raise PrivacyError(
                f"site {self.site}: the privacy ledger has {len(chain)} entries, expected at least {expected}; "
                f"some were lost. {_RESTORE}"
            )
        if head is not None and head not in {digest for _, digest in chain}:
            raise self._damaged("another ledger took its place")
        return chain

    def _read_head(self) -> tuple[int, str | None]:
        path = self._beside(".head")
        if not path.exists():
            return 0, None
        head = self._load(path)
        if set(head) != {"entries", "sha256"} or not isinstance(head["entries"], int):
            raise self._damaged("its last-entry file has the wrong keys")
        return head["entries"], str(head["sha256"])

    def _load(self, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._damaged("it is not readable JSON") from error
        if not isinstance(content, dict):
            raise self._damaged("it is not a JSON object")
        return content

    def _verify(self, content: dict[str, Any]) -> list[tuple[Entry, str]]:
        if content.get("format") != _FORMAT or not isinstance(content.get("entries"), list):
            raise self._damaged(f"its format is not {_FORMAT}")
        if content.get("site") != self.site:
            raise PrivacyError(
                f"site {self.site}: the privacy ledger is another site's. Give every site its own state folder."
            )
        before, chain = _genesis(self.site), list[tuple[Entry, str]]()
        for number, record in enumerate(content["entries"], start=1):
            try:
                fields = dict(record)
                proof = fields.pop("sha256")
                entry = Entry.model_validate(fields)
            except (KeyError, TypeError, ValueError, ValidationError) as error:
                raise self._damaged(f"entry {number} is unreadable") from error
            if proof != _digest(before, entry):
                raise self._damaged(f"entry {number} was altered")
            chain.append((entry, proof))
            before = proof
        return chain

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _damaged(self, how: str) -> PrivacyError:
        return PrivacyError(f"site {self.site}: the privacy ledger is damaged: {how}. {_RESTORE}")

    def _unwritable(self, error: OSError) -> PrivacyError:
        return PrivacyError(
            f"site {self.site}: the privacy ledger cannot be written ({error.strerror}), so nothing is trained. "
            "Free space in the state folder or correct its permissions."
        )


def history(entries: Sequence[Entry]) -> list[tuple[float, float, int]]:
    """Return ``(noise_multiplier, sample_rate, steps)`` per entry, as Opacus' accountants take it."""
    return [(entry.noise_multiplier, entry.sample_rate, entry.steps) for entry in entries]


def _genesis(site: str) -> str:
    return hashlib.sha256(f"{_FORMAT}\n{site}".encode()).hexdigest()


def _digest(before: str, entry: Entry) -> str:
    text = json.dumps(entry.model_dump(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()


def _write(path: Path, content: dict[str, Any]) -> None:
    replace_atomically(path, json.dumps(content, indent=1).encode("utf-8"))

"""Is this the file we think it is? Checked before anything is made from it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from popmi_core.errors import DataError


def file_digest(path: Path, algorithm: str) -> str:
    """Return the hexadecimal digest of a file of any size."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def verify_sha256(folder: Path, expected: Mapping[str, str]) -> None:
    """Check every named file of ``folder`` against its SHA-256, and against ``SHA256SUMS`` where the folder has one.

    Raises:
        DataError: If a file is missing or differs; names the file, the expected and the actual sum.
    """
    listed = _listed_sums(folder / "SHA256SUMS")
    for name, wanted in expected.items():
        try:
            got = file_digest(folder / name, "sha256")
        except OSError as error:
            raise DataError(
                f"{folder / name} cannot be read ({error.strerror}). Needed are {', '.join(expected)}; copy them again."
            ) from error
        if got != wanted:
            raise DataError(f"{folder / name} has SHA-256 {got}, expected {wanted}. Copy the file again.")
        if listed.get(name, got) != got:
            raise DataError(
                f"{folder / 'SHA256SUMS'} gives {listed[name]} for {name}, expected {got}. "
                "The file itself is right; restore SHA256SUMS from its origin."
            )


def _listed_sums(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    pairs = (line.split(maxsplit=1) for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return {pair[1].strip().lstrip("*"): pair[0].lower() for pair in pairs if len(pair) == 2}

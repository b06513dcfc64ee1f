"""A small made-up hospital: flat-coloured pictures, so that a test can tell them apart by colour."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeHospital = Callable[..., Path]


@pytest.fixture
def make_hospital(tmp_path: Path) -> MakeHospital:
    """Return a function that writes ``labels.csv`` and one picture per row, and returns the folder."""

    def make(
        rows: Sequence[Mapping[str, str]] | None = None,
        *,
        name: str = "hospital",
        size: tuple[int, int] = (10, 8),
        lesions: int = 30,
    ) -> Path:
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        rows = rows if rows is not None else default_rows(lesions)
        for number, row in enumerate(rows):
            colour = (number * 4 % 256, 100, 50)
            Image.new("RGB", size, colour).save(folder / "images" / f"{row['image']}.png")
        write_csv(folder / "labels.csv", rows)
        return folder

    return make


def default_rows(lesions: int) -> list[dict[str, str]]:
    """Two pictures per lesion, the classes nv, mel and bcc in turn, and no split."""
    return [
        {"image": f"P{number:03d}", "lesion_id": f"L{number // 2}", "diagnosis": ("nv", "mel", "bcc")[number // 2 % 3]}
        for number in range(2 * lesions)
    ]


def write_csv(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def make_npz(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a small npz file in MedMNIST's layout; keywords replace or add arrays."""

    def make(name: str = "blobs.npz", drop: Sequence[str] = (), **arrays: np.ndarray) -> Path:
        rng = np.random.default_rng(0)
        content: dict[str, np.ndarray] = {}
        for split, number in (("train", 60), ("val", 12), ("test", 18)):
            content[f"{split}_images"] = rng.integers(0, 256, (number, 9, 9), dtype=np.uint8)
            content[f"{split}_labels"] = (np.arange(number) % 3).astype(np.uint8)[:, None]
        content.update(arrays)
        path = tmp_path / name
        np.savez(path, **{key: value for key, value in content.items() if key not in drop})
        return path

    return make

"""A small made-up hospital: flat-coloured pictures, so that a test can tell them apart by colour."""

from __future__ import annotations

import csv
import io
import zipfile
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


INDEX_COLUMNS = ["image_id", "archive", "lesion_id", "dx", "label", "age"]
INDEX_COLUMNS += ["sex", "localization", "site", "lesion_split"]
ARCHIVES = {
    "ham10000_200x150.zip": (200, 150),
    "msk_isic2017_256x256.zip": (256, 256),
    "isic2018_test_128x128.zip": (128, 128),
}


@pytest.fixture
def raw_dermoscopy(tmp_path: Path) -> Path:
    """Return a miniature of the raw dermoscopy folder: made-up pictures, the real layout, no checksum list."""
    folder = tmp_path / "raw"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows: list[dict[str, str]] = []
    sites = {"vidir_molemax": 0, "vidir_modern": 0, "rosendahl": 0, "vienna_dias": 0, "msk": 1, "isic2018_test": 2}
    packed = [zipfile.ZipFile(folder / name, "w") for name in ARCHIVES]
    for site, archive in sites.items():
        name, size = list(ARCHIVES.items())[archive]
        for split in ["external"] * 4 if archive == 2 else ["train", "train", "val", "test"]:
            image = f"ISIC_{len(rows):07d}"
            picture = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(size)
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=90)
            packed[archive].writestr(f"{image}.jpg", buffer.getvalue())
            values = (image, name, f"L{len(rows)}", "nv", "5", "45", "female", "back", site, split)
            rows.append(dict(zip(INDEX_COLUMNS, values, strict=True)))
    for archive_file in packed:
        archive_file.close()
    write_csv(folder / "dermoscopy_index.csv", rows)
    return folder

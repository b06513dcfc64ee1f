"""HAM10000, the MSK images of ISIC 2017 and the ISIC 2018 test set as five sites and one external test set."""

from __future__ import annotations

import csv
import io
import os
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from popmi_core.data.build import building, write_labels
from popmi_core.data.card import FILE_NAME, DatasetCard, read_card, write_card
from popmi_core.data.checksums import verify_sha256
from popmi_core.data.decode import encode_png, to_square
from popmi_core.data.labels import DERMOSCOPY_CLASSES
from popmi_core.errors import DataError

SITES = ("vidir_molemax", "vidir_modern", "rosendahl", "vienna_dias", "msk")
EXTERNAL = "isic2018_test"
INDEX = "dermoscopy_index.csv"
RECIPE = "dermoscopy-1: central square (MSK first stretched from 256x256 to 341x256), antialiased bilinear"
SHA256: Mapping[str, str] = {
    INDEX: "0adb997d5b1e7cdfac29e30490324626cadef1f45829a0c666044facdb62fbb1",
    "ham10000_200x150.zip": "7cb851be40b372201f2c4036ef287bea9a85550384066dcf812c9fb08c292b71",
    "msk_isic2017_256x256.zip": "0aed37bec8cfcc7965247539a8af112f3ef01a00484330784166a127af0a1ba8",
    "isic2018_test_128x128.zip": "830a64cdd44aab37a8b1f5f96af1b860d7b2a4ecb276d3e544ce34bdac5e7457",
}
LICENCE = "CC BY-NC 4.0: attribution, non-commercial use only (https://creativecommons.org/licenses/by-nc/4.0/)"
CITATION = (
    "Tschandl P, Rosendahl C, Kittler H. The HAM10000 dataset, a large collection of multi-source dermatoscopic images "
    "of common pigmented skin lesions. Sci Data 2018;5:180161. doi:10.1038/sdata.2018.161",
    "Codella NCF et al. Skin lesion analysis toward melanoma detection: a challenge at ISBI 2017, hosted by ISIC. "
    "arXiv:1710.05006",
    "Codella N et al. Skin lesion analysis toward melanoma detection 2018: a challenge hosted by ISIC. "
    "arXiv:1902.03368",
)
# These were squashed to squares, nobody noted from which frame; 4:3 is the usual one.
_STRETCHED = {"msk_isic2017_256x256.zip": (341, 256)}
_SOURCE_SIZE = 128

Progress = Callable[[int, int], None]


def prepare_dermoscopy(
    source: Path,
    target: Path,
    *,
    image_size: int = 64,
    progress: Progress | None = None,
    sha256: Mapping[str, str] = SHA256,
) -> DatasetCard:
    """Write the five sites and the external set below ``target``; nothing happens if they are there already.

    Every image becomes its central square: 150x150 of HAM10000's 200x150, 256x256 of MSK's 341x256 after undoing the
    squeeze, all of the (already square) ISIC 2018 test images. ``split`` is the index's ``lesion_split``. Source
    files are only read; ``target`` appears complete or not at all.

    Args:
        source: Folder of the three archives and the index.
        target: Folder to make.
        image_size: Pixels per side of the stored PNGs.
        progress: Called with (images done, images in all).
        sha256: Expected checksum of every source file.

    Raises:
        DataError: If a source file is missing or differs, or ``target`` holds something else.
    """
    with building(target) as folder:
        if folder is None:
            return _accept(target, image_size, sha256)
        verify_sha256(source, sha256)
        index = _read_index(source / INDEX)
        _write_images(source, folder, index, image_size, progress)
        for site in (*SITES, EXTERNAL):
            write_labels(folder / site, (_label_row(row) for row in index if row["site"] == site))
        card = DatasetCard(
            name="dermoscopy",
            classes=DERMOSCOPY_CLASSES,
            image_size=image_size,
            source_image_size=_SOURCE_SIZE,
            sites=SITES,
            external=EXTERNAL,
            licence=LICENCE,
            citation=CITATION,
            recipe=RECIPE,
            source_sha256=dict(sha256),
        )
        write_card(folder, card)
    return card


def _accept(target: Path, image_size: int, sha256: Mapping[str, str]) -> DatasetCard:
    if not (target / FILE_NAME).is_file():
        raise DataError(f"{target} holds something that is no prepared data set. Name an empty or new folder.")
    card = read_card(target)
    wanted = (RECIPE, image_size, dict(sha256))
    if (card.recipe, card.image_size, card.source_sha256) != wanted:
        raise DataError(
            f"{target} holds {card.name} at {card.image_size} pixels ({card.recipe}), asked for is {image_size} pixels "
            f"({RECIPE}). Name another folder, or delete this one first."
        )
    return card


def _read_index(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _label_row(row: Mapping[str, str]) -> dict[str, str]:
    return {
        "image": f"{row['image_id']}.png",
        "lesion_id": row["lesion_id"],
        "diagnosis": row["dx"],
        "age": row["age"],
        "sex": row["sex"],
        "localization": row["localization"],
        "split": row["lesion_split"],
    }


def _write_images(
    source: Path, folder: Path, index: Sequence[Mapping[str, str]], image_size: int, progress: Progress | None
) -> None:
    for site in (*SITES, EXTERNAL):
        (folder / site / "images").mkdir(parents=True)

    def write(job: tuple[Mapping[str, str], bytes]) -> None:
        row, packed = job
        path = folder / row["site"] / "images" / f"{row['image_id']}.png"
        path.write_bytes(_render(packed, _STRETCHED.get(row["archive"]), image_size))

    # Threads suffice: Pillow and zlib release the interpreter while they work.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for done, _ in enumerate(pool.map(write, _unpack(source, index)), start=1):
            if progress is not None and (done % 250 == 0 or done == len(index)):
                progress(done, len(index))


def _unpack(source: Path, index: Sequence[Mapping[str, str]]) -> Iterator[tuple[Mapping[str, str], bytes]]:
    by_archive: defaultdict[str, list[Mapping[str, str]]] = defaultdict(list)
    for row in index:
        by_archive[row["archive"]].append(row)
    for archive, rows in by_archive.items():
        with zipfile.ZipFile(source / archive) as packed:
            for row in rows:
                yield row, packed.read(f"{row['image_id']}.jpg")


def _render(packed: bytes, stretched: tuple[int, int] | None, image_size: int) -> bytes:
    with Image.open(io.BytesIO(packed)) as picture:
        upright = picture.convert("RGB")
    if stretched is not None:
        upright = upright.resize(stretched, Image.Resampling.BILINEAR)
    return encode_png(to_square(upright, image_size=image_size))

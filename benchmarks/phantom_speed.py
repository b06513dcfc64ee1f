"""Time the phantom and draw its contact sheet.

OMP_NUM_THREADS=1 python benchmarks/phantom_speed.py
python benchmarks/phantom_speed.py --sheet docs/phantom.png
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image

from popmi_core.data.labels import DERMOSCOPY_CLASSES
from popmi_core.data.phantom import PHANTOM_SITES, draw_examples, make_phantom_site


def measure(num_images: int, image_size: int) -> dict[str, float]:
    """Return seconds to draw ``num_images`` of ``image_size`` pixels square at each site."""
    seconds = {}
    for site in PHANTOM_SITES:
        start = time.perf_counter()
        make_phantom_site(site, num_images=num_images, image_size=image_size, seed=0)
        seconds[site] = time.perf_counter() - start
    return seconds


def draw_sheet(image_size: int, each: int, seed: int) -> Image.Image:
    """Return a sheet with one row per site and ``each`` columns per class."""
    targets = np.repeat(np.arange(len(DERMOSCOPY_CLASSES)), each)
    rows = [
        np.concatenate(
            list(
                np.pad(draw_examples(site, targets, image_size=image_size, seed=seed), ((0, 0), (1, 1), (1, 1), (0, 0)))
            ),
            axis=1,
        )
        for site in PHANTOM_SITES
    ]
    return Image.fromarray(np.concatenate(rows))


def main() -> None:
    """Print one line per site, or write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="write the contact sheet here instead of timing")
    options = parser.parse_args()
    if options.sheet:
        # 128 colours keep the file small; nothing is measured on it.
        draw_sheet(options.size, 2, options.seed).quantize(128).save(options.sheet, optimize=True)
        return
    for site, seconds in measure(options.images, options.size).items():
        print(f"{site:18} {options.images} images of {options.size}x{options.size}: {seconds:5.2f} s")


if __name__ == "__main__":
    main()

"""What a site without images of its own draws, said as `popmi site enrol --data` takes it: phantom.py KIT FOLDER

The phantom has five sites. One of another name gets images of its own in FOLDER, by one of their devices.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

from popmi_core.data.phantom import PHANTOM_SITES, write_phantom_site
from popmi_core.data.spec import SiteSpec
from popmi_core.deployment import SiteKit, read_kit


def drawn(kit: SiteKit, folder: Path) -> SiteSpec:
    """Return where the site's images lie; they are drawn where they have to lie in ``folder`` and do not yet."""
    if kit.site in PHANTOM_SITES:
        return SiteSpec.phantom_of(kit.site)
    # Its own seed, so that it shares no image with the site whose device it has.
    seed = zlib.crc32(kit.site.encode())
    # Written last: with it, all images are there.
    if not (folder / "labels.csv").exists():
        write_phantom_site(
            folder,
            PHANTOM_SITES[seed % len(PHANTOM_SITES)],
            num_images=kit.config.data.phantom_images,
            image_size=kit.config.model.image_size,
            seed=seed,
        )
    return SiteSpec(path=folder)


if __name__ == "__main__":
    sys.stdout.write(f"{drawn(read_kit(Path(sys.argv[1])), Path(sys.argv[2]))}\n")

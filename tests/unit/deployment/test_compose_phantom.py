"""What a container's site without images of its own draws (deploy/compose/phantom.py)."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from client.load import load_site
from popmi_core.config import RunConfig
from popmi_core.data.labels import DERMOSCOPY_CLASSES
from popmi_core.deployment import SiteKit
from popmi_core.deployment.enrolment import write_kit

ROOT = Path(__file__).parents[3]
CLASSES = tuple(sorted(DERMOSCOPY_CLASSES))


def drawn(tmp_path: Path, site: str) -> str:
    """Run the script for a site of this name; return the data it says."""
    config = RunConfig.model_validate({"data": {"phantom_images": 40}, "model": {"image_size": 32}})
    kit = SiteKit(
        project="compose", site=site, endpoint="gateway:8443", classes=CLASSES, config=config, ca_pem="certificate"
    )
    write_kit(tmp_path / f"{site}.zip", kit)
    done = subprocess.run(
        [sys.executable, ROOT / "deploy/compose/phantom.py", tmp_path / f"{site}.zip", tmp_path / site],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_site_of_the_phantom_is_drawn_by_its_name(tmp_path: Path) -> None:
    assert drawn(tmp_path, "phantom_ruler") == "phantom:phantom_ruler"
    assert not (tmp_path / "phantom_ruler").exists()


def test_a_site_of_another_name_gets_images_of_its_own_that_a_site_can_load(tmp_path: Path) -> None:
    places = [drawn(tmp_path, site) for site in ("phantom_sixth", "north")]
    seen = []
    for place in places:
        site = load_site("any", place, image_size=32, phantom_images=0, seed=0, classes=CLASSES)
        assert len(site.train) + len(site.val) + len(site.test) == 40
        seen.append({hashlib.sha256(path.read_bytes()).digest() for path in Path(place).glob("images/*.png")})
    assert [len(item) for item in seen] == [40, 40]
    assert not seen[0] & seen[1]


def test_images_that_lie_there_are_not_drawn_again(tmp_path: Path) -> None:
    place = Path(drawn(tmp_path, "north"))
    before = (place / "labels.csv").stat().st_mtime_ns
    assert Path(drawn(tmp_path, "north")) == place
    assert (place / "labels.csv").stat().st_mtime_ns == before

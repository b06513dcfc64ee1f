"""`deploy/site/compose.yaml` beside the other containers: a hospital that knows this file, its kit and its images."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.compose, pytest.mark.timeout(2400)]
ROOT = Path(__file__).parents[2]
NAME = "hospital"
# The way to the gateway is the only thing that is not in the file: here, one of the networks without a way out.
WAY = "networks: {default: {external: true, name: %s_site-5}}\n"
RUN = (ROOT / "tests/compose/two-rounds.toml").read_text().replace("rounds = 2", "rounds = 1").replace(
    "min_sites = 3", f'min_sites = 2\nsites = ["phantom_contact", "{NAME}"]'
).replace("quorum = 3", "quorum = 2")  # fmt: skip


class Hospital:
    """A folder as a hospital has it: the compose file, the kit, the images."""

    def __init__(self, folder: Path, stage: Any) -> None:
        self.folder = folder
        shutil.copy(ROOT / "deploy/site/compose.yaml", folder)
        (folder / "compose.override.yaml").write_text(WAY % stage.project)
        (folder / "kit").mkdir()
        self.environment = os.environ | {
            "POPMI_SITE_DATA": "./images", "POPMI_SITE_MEMORY": "3g", "HTTPS_PROXY": "", "NO_PROXY": "",
            "COMPOSE_PROJECT_NAME": stage.hospital, "COMPOSE_ENV_FILES": "/dev/null",
        }  # fmt: skip

    def compose(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(
            ["docker", "compose", "--ansi", "never", *words],
            cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        if check and done.returncode:
            pytest.fail(f"docker compose {' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def site(self, *words: str) -> str:
        """Run one of a site's commands, as the file's first lines say."""
        return self.compose("run", "--rm", "-T", "site", *words)

    def draw_images(self) -> None:
        """Draw images as the other sites do, and let user 10001 read them and the kit."""
        draw = [sys.executable, "deploy/compose/phantom.py", str(self.folder / "kit" / f"{NAME}.zip")]
        subprocess.run([*draw, str(self.folder / "images")], cwd=ROOT, check=True, capture_output=True)
        for path in (self.folder, *self.folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.fixture(scope="module")
def hospital(stage: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    made = Hospital(tmp_path_factory.mktemp("hospital"), stage)
    try:
        yield made
    finally:
        made.compose("down", "--volumes", "--timeout", "5", check=False)


def test_a_hospital_takes_part_by_the_file_for_a_single_site(stage: Any, hospital: Hospital) -> None:
    assert stage.finished()["status"] == "finished"
    operator = ("exec", "-T", "keeper", "popmi", "server")
    stage.compose(*operator, "add-site", NAME)
    stage.compose("cp", f"keeper:/home/popmi/server/kits/{NAME}.zip", str(hospital.folder / "kit"))
    hospital.draw_images()

    enrolled = hospital.site("enrol", f"/kit/{NAME}.zip", "--data", "/data")
    read = ("run", "--rm", "-T", "--entrypoint", "cat", "site", f"/home/popmi/site/{NAME}.enrolment.json")
    assert f"{' '.join(read)} > ".replace(NAME, "NAME") in (hospital.folder / "compose.yaml").read_text()
    (hospital.folder / "enrolment.json").write_text(hospital.compose(*read))

    stage.compose("cp", str(hospital.folder / "enrolment.json"), "keeper:/home/popmi/server/hospital.json")
    fingerprint = re.search(r"SHA256:\S+", enrolled)
    assert fingerprint
    stage.compose(*operator, "confirm", "/home/popmi/server/hospital.json", "--fingerprint", fingerprint[0])
    hospital.site("approve", "--installed", "--yes")
    # Ends with 1, and so this test, where something keeps the site from taking part.
    hospital.site("doctor")
    hospital.compose("up", "--detach")

    stage.python("keeper", f"open('/tmp/hospital.toml', 'w').write({RUN!r})")
    stage.compose(*operator, "start", "/tmp/hospital.toml", "--name", "hospital")
    assert stage.finished("hospital")["status"] == "finished", hospital.compose("logs", check=False)[-4000:]
    rows = stage.api(f"/runs/{stage.run('hospital')['key']}/sites")
    trained = {row["site"]: row["outcome"] for row in rows if row["phase"] == "train" and row["server_round"] == 1}
    assert trained == {"phantom_contact": "ok", NAME: "ok"}

    stage.until(
        "the site says that it is well", lambda: '"Health":"healthy"' in hospital.compose("ps", "--format", "json")
    )
    assert "lines, whole" in hospital.site("audit", "verify")
    assert hospital.compose("exec", "-T", "site", "id", "-u").strip() == "10001"
    # No run of the others is to wait for it from now on.
    stage.compose(*operator, "revoke", NAME, "--reason", "the test is over")
    told = {site["name"]: site["state"] for site in json.loads(stage.compose(*operator, "sites", "--json"))["sites"]}
    assert told[NAME] == "revoked"

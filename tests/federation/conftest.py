"""A federation small enough for tests: phantom sites, a ViT of 29 k parameters, two or three sites."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message

from client.app import app as client_app
from popmi_core.cli.lineup import plan_run
from popmi_core.config import parse_config
from popmi_core.protocol import PLAN_KEY, RunPlan
from popmi_core.simulation import run_inprocess
from server.app import app as server_app
from server.store import RunReader

TINY: dict[str, Any] = {
    "rounds": 2,
    "sites": ["phantom_polarised", "phantom_ruler", "phantom_slide"],
    "data": {"source": "phantom", "phantom_images": 60},
    "model": {"backbone": "popmi_vit_micro", "image_size": 32},
    "local": {"batch_size": 32},
}


class Federation:
    """Plans and runs tiny federations below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def plan(self, name: str = "run", **changes: Any) -> RunPlan:
        """Return a plan; ``changes`` replace whole parts of the tiny configuration."""
        return plan_run(parse_config({**TINY, **changes}), self.folder / name)

    def run(self, plan: RunPlan, app: Callable[[Message, Context], Message] = client_app) -> None:
        """Run to the end."""
        run_inprocess(server_app, app, plan.lineup, {PLAN_KEY: plan.model_dump_json()})

    def read(self, plan: RunPlan) -> RunReader:
        """Open the record of a run."""
        return RunReader(Path(plan.folder) / "record.sqlite")

    def model_bytes(self, plan: RunPlan, server_round: int) -> bytes:
        """Return the file of a round's global model."""
        return (Path(plan.folder) / "models" / f"round-{server_round:03d}.safetensors").read_bytes()


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path)

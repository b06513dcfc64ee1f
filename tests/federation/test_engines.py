"""Every kind of message a fusion rule sends works on both engines, and the engines end at the same model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import allclose

from popmi_core.checkpoints import load_state

CONFIG = """
rounds = 2
sites = ["phantom_polarised", "phantom_ruler"]
strategy = "{strategy}"
[data]
source = "phantom"
phantom_images = 60
[model]
backbone = "popmi_vit_micro"
image_size = 32
[local]
batch_size = 32
{more}
"""
# Candidates judged, maps learned at the site, Gram matrices, FedMA's rounds, answers of all models, matching at the
# site with parts that stay there, state on both sides, low-rank adapters over a frozen backbone.
KINDS = {
    "opm-gated": "",
    "opm-learned": "",
    "opm-regmean": "",
    "fedma": "",
    "ensemble": "",
    "opm": '[personal]\nkeep_local = ["head"]\n[match]\nwhere = "site"\n',
    "adaptive-circuit": 'objective = "control_variates"\n[server_optimizer]\nname = "momentum"\n',
    "lowrank": '[model.lora]\nrank = 2\ntrain = "adapter"\n',
}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", KINDS)
def test_ray_ends_at_the_in_process_engines_model(strategy, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(CONFIG.format(strategy=strategy, more=KINDS[strategy]))
    states = {}
    for engine in ("inprocess", "ray"):
        command = [Path(sys.executable).with_name("popmi"), "simulate", config, "--engine", engine]
        out = tmp_path / engine
        # Sums over two threads are rounded otherwise than over one, and training makes that larger.
        done = subprocess.run(
            [*map(str, command), "--out", str(out), "--json"],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["rounds"] == 2
        states[engine] = load_state(out / "models" / "round-002.safetensors")[0]
    assert states["ray"].keys() == states["inprocess"].keys()
    for name, tensor in states["ray"].items():
        assert allclose(tensor, states["inprocess"][name], rtol=1e-5, atol=1e-7), name

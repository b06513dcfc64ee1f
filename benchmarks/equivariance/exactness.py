"""Is what is called exact exact? Every family, design, rival and group, in float32 and float64, at four moments.

    python benchmarks/equivariance/exactness.py --out docs/results/exactness

Moments: as it is made; after steps of training; after five clients each trained from there were averaged; after OPM
fused two trained models, one of them shuffled first. The error is the largest change of a logit under the group over
the logits' spread between images. Exits with status 1 if a row that promises exactness is off by more than 1e-4
(float32) or 1e-10 (float64). Half an hour of one core.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is loaded

import argparse
import copy
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from exactness_page import BOUNDS, report
from subjects import CLASSES, Subject, subjects
from torch import Tensor, nn

from popmi_core.adapters import equivariance_error
from popmi_core.errors import ModelError, UpdateError
from popmi_core.fusion.dispatch import fuse
from popmi_core.fusion.repair import norm_statistics, pool_norm_statistics, with_norm_statistics
from popmi_core.fusion.update import Update
from popmi_core.groups import point_group
from popmi_core.groups.finite import image_action
from popmi_core.invariance.method import ExtraLoss
from popmi_core.matching import apply, describe_model, random_element

STEPS, CLIENTS, IMAGES = 3, 5, 4
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    told = arguments.out.with_suffix(".json")
    if not arguments.from_json:
        rows = []
        for subject in subjects():
            name = f"{subject.family}, {subject.design}, {subject.group}"
            if arguments.only in name:
                begun = time.perf_counter()
                rows += [examined(subject, dtype) for dtype in DTYPES]
                print(name, rows[-2]["errors"], rows[-1]["errors"], f"{time.perf_counter() - begun:.1f} s", flush=True)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        told.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    rows = json.loads(told.read_text())
    arguments.out.with_suffix(".md").write_text(report(rows))
    broken = [row for row in rows if row["promised"] and not kept_promise(row)]
    for row in broken:
        print(
            f"broken: {row['family']}, {row['design']}, {row['group']}, {row['dtype']}: {row['errors']}",
            file=sys.stderr,
        )
    sys.exit(1 if broken else 0)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose 'family, design, group' has this in it")
    parser.add_argument("--from-json", action="store_true", help="compute nothing; judge and print OUT.json again")
    parser.add_argument("--out", type=Path, required=True, help="path without ending; .json and .md are written")
    return parser.parse_args()


def kept_promise(row: Mapping[str, Any]) -> bool:
    """Return whether every moment of a row is within its bound; what could not be made counts as broken."""
    errors = [error for error in row["errors"].values() if error is not None]
    return bool(errors) and row["errors"]["start"] is not None and max(errors) <= BOUNDS[row["dtype"]]


def examined(subject: Subject, dtype: str) -> dict[str, Any]:
    """Return one row: the error at every moment, None where there is no such moment, and why."""
    promised, note = subject.promise()
    row: dict[str, Any] = {
        "family": subject.family, "design": subject.design, "group": subject.group, "size": subject.image_size,
        "promised": promised, "note": note, "dtype": dtype,
    }  # fmt: skip
    errors: dict[str, float | None] = dict.fromkeys(("start", "trained", "averaged", "fused"))
    try:
        model = subject.make(0).to(DTYPES[dtype])
    except ModelError as error:
        return {**row, "errors": errors, "why": str(error)}
    images = blobs(subject, 9, dtype)
    errors["start"] = measured(model, images, subject.group)
    trained(model, subject, dtype, seed=0)
    errors["trained"] = measured(model, images, subject.group)
    averaged = copy.deepcopy(model)
    averaged.load_state_dict(mean_of([own_state(model, subject, dtype, seed) for seed in range(CLIENTS)]))
    errors["averaged"] = measured(averaged, images, subject.group)
    try:
        errors["fused"] = measured(fused(model, subject, dtype), images, subject.group)
    except (ModelError, UpdateError) as error:
        row["why"] = str(error)
    return {**row, "errors": errors}


def measured(model: nn.Module, images: Tensor, group: str) -> float:
    """Return the error of a model, put in evaluation mode: over all turns of the group but none."""
    model.eval()
    if group in ("C4", "D4"):
        return float(f"{equivariance_error(model, images, point_group(group)):.3g}")
    action = image_action(group)
    with torch.no_grad():
        logits = model(images)
        moved = [(model(action.act(index, images)) - logits).abs().max() for index in range(1, len(action))]
    return float(f"{float(torch.stack(moved).max() / logits.std(dim=0).mean()):.3g}")


def blobs(subject: Subject, seed: int, dtype: str) -> Tensor:
    """Return a few smooth random images.

    Noise of single pixels looks all alike to a net, and errors are shares of what images differ by.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(IMAGES, 3, 4, 4, generator=generator, dtype=torch.float64)
    size = (subject.image_size, subject.image_size)
    return nn.functional.interpolate(coarse, size=size, mode="bicubic").to(DTYPES[dtype])


def trained(model: nn.Module, subject: Subject, dtype: str, seed: int) -> None:
    """Train a few steps in place, on images of the seed."""
    images, target = blobs(subject, 100 + seed, dtype), torch.arange(IMAGES) % CLASSES
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model.train()
    for _ in range(STEPS):
        loss = nn.functional.cross_entropy(model(images), target)
        extra = model.extra_loss() if isinstance(model, ExtraLoss) else None
        optimizer.zero_grad()
        torch.autograd.backward(loss if extra is None else loss + extra)
        optimizer.step()
    model.eval()


def own_state(model: nn.Module, subject: Subject, dtype: str, seed: int) -> dict[str, Tensor]:
    """Return what a client makes of the model on images of its own."""
    client = copy.deepcopy(model)
    trained(client, subject, dtype, 1 + seed)
    return dict(client.state_dict())


def mean_of(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of the states as a round takes it, equal weights."""
    updates = [Update(f"client{number}", state, 1) for number, state in enumerate(states)]
    return dict(fuse("average", updates, reference=states[0]).state)


def fused(model: nn.Module, subject: Subject, dtype: str) -> nn.Module:
    """Return the fusion by OPM of the model and of another, trained from another start and put into a random basis."""
    other = subject.make(1).to(DTYPES[dtype])
    trained(other, subject, dtype, seed=1)
    symmetry = describe_model(model, image_size=subject.image_size)
    element = random_element(symmetry, torch.Generator().manual_seed(3))
    moved = apply(other.state_dict(), symmetry, element, like=model.state_dict())
    updates = [Update("first", dict(model.state_dict()), 1), Update("second", moved, 1)]
    both, state = copy.deepcopy(model), fuse("opm", updates, reference=model.state_dict(), symmetry=symmetry).state
    both.load_state_dict(dict(state))
    # As ``popmi fuse --repair``: with its parents' statistics a BatchNorm of an average lets all images look alike.
    measured_anew = pool_norm_statistics([norm_statistics(both, blobs(subject, 300, dtype))])
    both.load_state_dict(with_norm_statistics(state, measured_anew))
    return both


if __name__ == "__main__":
    main()

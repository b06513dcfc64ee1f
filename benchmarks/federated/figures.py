"""Exact figures of a finished run's last model (or models), over the sites' validation and test images."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from popmi_core.checkpoints import load_state
from popmi_core.cli.lineup import reopen_run
from popmi_core.data import load_site
from popmi_core.metrics import auroc_macro_ovr, classification_metrics
from popmi_core.models import build_model, exchanged_state, load_exchanged, predict
from popmi_core.protocol import POOLED_SITE

KEPT = ("auroc", "balanced_accuracy", "accuracy", "macro_f1", "ece", "nll")


def figures_of(folder: Path, server_round: int | None = None) -> dict[str, Any]:
    """Return figures over all images of each split, and the AUROC of the site where the model is worst.

    Of the last round, or of the one given.
    """
    plan = reopen_run(folder)
    model = build_model(plan.config.model, len(plan.classes), seed=plan.config.seed)
    base = exchanged_state(model)
    last = f"round-{plan.config.rounds if server_round is None else server_round:03d}.safetensors"
    state, _ = load_state(folder / "models" / last)
    # Two rules with the same hash made the same model, bit for bit.
    result: dict[str, Any] = {"sha256": digest(state)}
    for split in ("val", "test"):
        scores, targets, by_site = [], [], {}
        for item in (item for item in plan.lineup if item.site != POOLED_SITE):
            load_exchanged(model, {**base, **state, **own_tensors(folder, last, item.site)})
            images = getattr(
                load_site(
                    item.site,
                    item.data[0],
                    image_size=plan.config.model.image_size,
                    phantom_images=plan.config.data.phantom_images,
                    seed=plan.config.seed,
                ),
                split,
            )
            scores.append(predict(model, images.images))
            targets.append(images.targets)
            by_site[item.site] = round(auroc_macro_ovr(scores[-1], images.targets), 6)
        found = classification_metrics(np.concatenate(scores), np.concatenate(targets))
        result |= {f"{split}_{name}": round(found[name], 6) for name in KEPT}
        result[f"{split}_worst_site_auroc"] = min(by_site.values())
        result[f"{split}_site_auroc"] = by_site
    return result


def digest(state: Mapping[str, Tensor]) -> str:
    """Return a short hash of names and weights."""
    found = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        found.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def models_of(folder: Path) -> list[int]:
    """Return the rounds whose global model is kept."""
    return sorted(int(path.stem.rpartition("-")[2]) for path in (folder / "models").glob("round-*.safetensors"))


def own_tensors(folder: Path, last: str, site: str) -> dict[str, Tensor]:
    """Return what of the model is the site's own: all of it (strategy local), or what it keeps at home."""
    path, prefix = folder / "state" / last, f"site/{site}/"
    whole = load_state(path)[0] if path.exists() else {}
    found = {name.removeprefix(prefix): tensor for name, tensor in whole.items() if name.startswith(prefix)}
    kept = sorted((folder / "sites" / site).glob("personal-*.safetensors"))
    return found | (load_state(kept[-1])[0] if kept else {})


if __name__ == "__main__":
    print(figures_of(Path(sys.argv[1])))

"""Exact figures of a finished run's last model (or models), over the sites' validation and test images."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from client.prior import OwnPrior, class_counts, prior_shift
from popmi_core.checkpoints import load_state
from popmi_core.cli.lineup import reopen_run
from popmi_core.data import SiteData, load_site
from popmi_core.metrics import auroc_macro_ovr, classification_metrics
from popmi_core.models import build_model, exchanged_state, load_exchanged, predict
from popmi_core.protocol import POOLED_SITE, RunPlan

SPLITS = ("val", "test")
Scores = npt.NDArray[np.float64]
KEPT = ("auroc", "balanced_accuracy", "accuracy", "macro_f1", "ece", "nll")


def figures_of(
    folder: Path, server_round: int | None = None, *, own_prior: bool = False, weights: Path | None = None
) -> dict[str, Any]:
    """Return figures over all images of each split, every site's AUROC, and that on images from elsewhere.

    Of the last round, or of the one given, or of the model in the file ``weights``. ``own_prior``: answered as with
    ``personal.class_prior = 'own'``, which changes nothing in training. *External*: a test set no site trained on,
    answered by the common model; where sites keep parts, by the mean of the sites' answers.
    """
    plan = reopen_run(folder)
    model = build_model(plan.config.model, len(plan.classes), seed=plan.config.seed)
    base = exchanged_state(model)
    last = f"round-{plan.config.rounds if server_round is None else server_round:03d}.safetensors"
    state, _ = load_state(folder / "models" / last if weights is None else weights)
    # Two rules with the same hash made the same model, bit for bit.
    result: dict[str, Any] = {"sha256": digest(state)}
    sites = {item.site: images_of(plan, item.site, item.data[0]) for item in plan.lineup if item.site != POOLED_SITE}
    outside = None if plan.external is None else images_of(plan, "external", plan.external).external
    counts = {site: class_counts(data.train, len(plan.classes)) for site, data in sites.items()}
    together = [sum(column) for column in zip(*counts.values(), strict=True)]
    scores: dict[str, list[Scores]] = {split: [] for split in (*SPLITS, "external")}
    for site, data in sites.items():
        load_exchanged(model, {**base, **state, **own_tensors(folder, last, site)})
        answering = OwnPrior(model, prior_shift(counts[site], together)) if own_prior else model
        for split in SPLITS:
            scores[split].append(predict(answering, getattr(data, split).images))
        if outside is not None:
            scores["external"].append(predict(model, outside.images))
    for split in SPLITS:
        targets = [getattr(data, split).targets for data in sites.values()]
        found = classification_metrics(np.concatenate(scores[split]), np.concatenate(targets))
        result |= {f"{split}_{name}": round(found[name], 6) for name in KEPT}
        each = [round(auroc_macro_ovr(*pair), 6) for pair in zip(scores[split], targets, strict=True)]
        result[f"{split}_worst_site_auroc"] = min(each)
        result[f"{split}_site_auroc"] = dict(zip(sites, each, strict=True))
    if outside is not None:
        result["external_auroc"] = round(auroc_macro_ovr(np.mean(scores["external"], axis=0), outside.targets), 6)
    return result


def images_of(plan: RunPlan, site: str, spec: str) -> SiteData:
    """Return a site's images as the run saw them."""
    config = plan.config
    size, phantom = config.model.image_size, config.data.phantom_images
    return load_site(site, spec, image_size=size, phantom_images=phantom, seed=config.seed)


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

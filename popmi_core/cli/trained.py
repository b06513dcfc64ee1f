"""What `popmi fit` and `popmi distill` share: where the file goes, figures of a model, and its proof on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from popmi_core.checkpoints import save_state
from popmi_core.cli.opened import open_model
from popmi_core.cli.outputs import as_json, require_writable
from popmi_core.data import ImageSet, SiteData
from popmi_core.errors import ConfigError, DataError, ModelError
from popmi_core.learning.cost import flops, images_per_second
from popmi_core.metrics import classification_metrics
from popmi_core.models import predict

SCORED = ("accuracy", "balanced_accuracy", "auroc")
_TIMED = 32
# A figure of the clock would make the files of equal runs differ.
_NOT_KEPT = ("seconds", "images_per_second", "history")


def require_file(option: str, out: Path, read: Sequence[Path], *, force: bool) -> None:
    """Find out before the work whether ``out`` can be written.

    Raises:
        ConfigError: If it cannot, is a folder, is one of the files that are read, or is there and not to be replaced.
    """
    require_writable(out, out.parent)
    if not out.exists():
        return
    if not out.is_file():
        raise ConfigError(f"{option} {out} is a folder or a device, expected a file's name. Choose another.")
    if any(path.exists() and path.samefile(out) for path in read):
        raise ConfigError(f"{option} {out} is the model that is read. Choose another file.")
    if not force:
        raise ConfigError(f"{option} {out} is there already. Choose another file, or write over it with --force.")


def images_of(sites: Mapping[str, SiteData], split: str) -> ImageSet:
    """Return the images of one split, site after site; perhaps none."""
    from popmi_core.cli.sites import together

    return together({site: getattr(data, split) for site, data in sites.items()})


def scores_of(models: Mapping[str, nn.Module], sites: Mapping[str, SiteData]) -> dict[str, Any]:
    """Return accuracy, balanced accuracy and AUROC of every model on the sites' val and test images together.

    Raises:
        DataError: If there is no such image.
    """
    found: dict[str, Any] = {}
    for split in ("val", "test"):
        data = images_of(sites, split)
        if not len(data):
            continue
        scored = {
            who: classification_metrics(predict(model, data.images), data.targets) for who, model in models.items()
        }
        found[split] = {"images": len(data)} | {who: {key: one[key] for key in SCORED} for who, one in scored.items()}
    if not found:
        raise DataError("there is no validation or test image to score on. Give data with such splits.")
    return found


def cost_of(models: Mapping[str, nn.Module], image_size: int) -> dict[str, dict[str, float]]:
    """Return operations of one image, their ratio to the last model's, and images a second, by model."""
    one = torch.zeros(1, 3, image_size, image_size)
    counted = {who: flops(model, one) for who, model in models.items()}
    base = list(counted.values())[-1]
    speed = {who: images_per_second(model, one.expand(_TIMED, -1, -1, -1)) for who, model in models.items()}
    return {
        "flops": {who: float(count) for who, count in counted.items()},
        "ratio": {who: round(count / base, 4) for who, count in counted.items()},
        "images_per_second": {who: round(value, 1) for who, value in speed.items()},
    }


def save_model(out: Path, model: nn.Module, notes: Mapping[str, Mapping[str, Any]], *, image_size: int) -> str:
    """Write the model with its card or lineage, open the file as other commands do, and return its sha256.

    Raises:
        ModelError: If the file opened answers otherwise than the model.
        RunError: If it cannot be written.
    """
    kept = {key: _kept(note) for key, note in notes.items()}
    digest = save_state(out, model.state_dict(), {key: as_json(note, indent=None) for key, note in kept.items()})
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        same = torch.equal(open_model(out).model(images), model.eval()(images))
    if not same:
        raise ModelError(f"{out} answers otherwise than the model that was written. Report this with the command.")
    return digest


def _kept(note: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _kept(value) if isinstance(value, Mapping) else value
        for key, value in sorted(note.items())
        if key not in _NOT_KEPT
    }

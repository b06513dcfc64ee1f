"""The model of one run: built from its row, trained by the rule of its data set, kept by a hash of its description."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nets  # noqa: F401  (registers a backbone)
from cases import Case
from data import Images, data_folder, subset
from torch import Tensor, nn
from torch.nn.functional import interpolate

from popmi_core.adapters import attach
from popmi_core.checkpoints import load_state, save_state
from popmi_core.config import ModelConfig
from popmi_core.invariance.build import build_method
from popmi_core.invariance.method import MethodContext
from popmi_core.learning.distill import DistillConfig, distill, student_of
from popmi_core.learning.fit import FitConfig, Fitted, fit
from popmi_core.models import build_model, normalise

# Of rows that train on some of the images.
DRAWN = 21
# Validation images that choose their epoch, at most, for every one that they learn from.
TIMES_JUDGED = 2


class Enlarged(nn.Module):
    """Enlarges images to ``size`` pixels before the model sees them (bilinear, which commutes with quarter turns)."""

    def __init__(self, model: nn.Module, size: int) -> None:
        super().__init__()
        self.model, self.size = model, size
        self.pretrained_cfg = getattr(model, "pretrained_cfg", {})

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return self.model(enlarged(images, self.size))


def enlarged(images: Tensor, size: int) -> Tensor:
    """Return the images [n, c, side, side] at ``size`` pixels per side."""
    return interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


def backbone(case: Case, images: Images) -> nn.Module:
    """Return the data set's plain backbone (the row's, if it names one), its weights drawn by the seed."""
    recipe = case.recipe
    config = ModelConfig(
        backbone=recipe["backbone"], image_size=case.row.image_size or images.image_size,
        patch_size=recipe.get("patch_size"),
        weights=str(data_folder() / recipe["weights"]) if "weights" in recipe else "random",
    )  # fmt: skip
    return build_model(config, images.num_classes, seed=case.seed)


def build(case: Case, images: Images, runs: Path) -> nn.Module:
    """Return the row's model as it is before training."""
    row, size = case.row, case.row.image_size or images.image_size
    if row.kind in ("plain", "network"):
        model = backbone(case, images)
    elif row.kind == "distilled":
        model = student_of(inner(get_model(case.start(), images, runs)[0]), **row.options, seed=case.seed)
    elif row.kind == "prea":
        model = attach(backbone(case, images), **row.options, seed=case.seed, image_size=size)
    else:
        context = MethodContext(
            _source(case, images, runs), row.options["group"], size, 3, images.num_classes, case.seed, row.train
        )
        model = build_method(row.options["method"], context)
    return model if size == images.image_size else Enlarged(model, size)


def _source(case: Case, images: Images, runs: Path) -> Callable[[], nn.Module]:
    """Return what a method is built on: fresh backbones, or copies of a trained one."""
    return fresh_copies(case.start(), images, runs) if case.row.start else lambda: backbone(case, images)


def fresh_copies(case: Case, images: Images, runs: Path) -> Callable[[], nn.Module]:
    """Return what makes copies of the trained plain model of a run."""
    trained, _ = get_model(case, images, runs)
    return lambda: copy.deepcopy(trained)


def get_model(case: Case, images: Images, runs: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return the trained model in evaluation mode, and how its training went; trained now if it is not kept yet."""
    path = runs / "weights" / f"{case.weights_key}.safetensors"
    model = build(case, images, runs)
    if not path.exists():
        notes = train(model, case, images, runs)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_state(path, model.state_dict(), {"training": json.dumps(notes)})
        return model.eval(), notes
    state, metadata = load_state(path)
    model.load_state_dict(state)
    return model.eval(), json.loads(metadata["training"])


def train(model: nn.Module, case: Case, images: Images, runs: Path) -> dict[str, Any]:
    """Train in place by the rule of the data set; return what it took."""
    recipe = case.recipe
    config = FitConfig(
        epochs=recipe["epochs"], batch_size=recipe["batch_size"], learning_rate=recipe["learning_rate"],
        weight_decay=recipe["weight_decay"], warmup=recipe["warmup"], seed=case.seed, augment=recipe["augment"],
        choose=recipe["choose"],
    )  # fmt: skip
    if case.row.images is not None:
        # Every epoch is judged: with all validation images that would take longer than to learn from a few.
        few, judged = case.row.images, TIMES_JUDGED * case.row.images
        images = replace(images, train=subset(images.train, few, DRAWN)[0], val=subset(images.val, judged, DRAWN)[0])
    begun = time.process_time()
    if case.row.kind == "distilled":
        fitted = teach(get_model(case.start(), images, runs)[0], model, images, config)
    else:
        fitted = fit(model, images.train, images.val, config)
    return {
        "seconds": round(time.process_time() - begun, 1),
        "epochs": recipe["epochs"],
        "seen": recipe["epochs"] * len(images.train),
        "best_epoch": fitted.best.number,
        "val": {name: round(float(value), 5) for name, value in fitted.best.figures.items()},
        "last_loss": round(fitted.history[-1].loss, 5) if fitted.history else None,
    }


def teach(teacher: nn.Module, student: nn.Module, images: Images, config: FitConfig) -> Fitted:
    """Teach the student on the training images without their labels, as many passes as the others have."""
    own = inner(student)
    settings = DistillConfig(fit=replace(config, choose="nll"))
    if own.fields == "regular":
        # Its features turn with the image; each of the two sees its own size.
        return distill(teacher, student, images.train.images, replace(settings, features=0.0)).fitted

    def as_inputs(stored: Tensor) -> Tensor:
        pixels = normalise(stored, own)
        return enlarged(pixels, student.size) if isinstance(student, Enlarged) else pixels

    return distill(inner(teacher), own, images.train.images, settings, normalise=as_inputs).fitted


def inner(model: nn.Module) -> Any:
    """Return the model that sees the enlarged images, or the model itself."""
    return model.model if isinstance(model, Enlarged) else model

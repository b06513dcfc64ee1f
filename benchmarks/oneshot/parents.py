"""The parents of the one-shot study: small models trained from different random starts, kept by a hash of their recipe.

    python benchmarks/oneshot/parents.py --runs runs/oneshot

``blood`` is BloodMNIST content: every seed trains on the whole training split. ``dermoscopy`` is four real sites: every
site trains its own model from its own start, once a seed, on its own images only. Recipes were fixed beforehand;
no figure of the test split was looked at to choose them. What is there already is not trained again.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is loaded

import argparse
import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from popmi_core.checkpoints import load_state, save_state
from popmi_core.config import ModelConfig
from popmi_core.data import ImageSet, SiteData, load_site, locate
from popmi_core.models import build_model, normalise, predict

IMAGE_SIZE = 28
# Of blood all seeds share a site: four of them make one four, and five make five.
SEEDS_OF = {"blood": 5, "dermoscopy": 4}
# The four largest sites.
SITES = ("vidir_molemax", "vidir_modern", "rosendahl", "msk")
ARCHITECTURES = ("popmi_vit_64", "popmi_mlp", "popmi_vit_128", "popmi_resnet20", "popmi_resnet20_gn")
# Images seen in training, in thousands: what fits into about half an hour of one core for all parents together.
BUDGET = {
    "blood": {"popmi_vit_64": 180, "popmi_mlp": 240, "popmi_vit_128": 145, "popmi_resnet20": 72},
    "dermoscopy": {"popmi_vit_64": 20, "popmi_mlp": 28, "popmi_vit_128": 14, "popmi_resnet20": 16},
}
LEARNING_RATE = {"popmi_vit_64": 1e-3, "popmi_mlp": 5e-4, "popmi_vit_128": 7e-4, "popmi_resnet20": 2e-3}


@dataclass(frozen=True)
class Recipe:
    """Everything a parent depends on; ``site`` is where its images lie, ``seed`` gives start and order."""

    dataset: str
    site: str
    architecture: str
    seed: int
    images: int
    learning_rate: float
    batch_size: int = 64
    weight_decay: float = 0.05
    warmup: float = 0.1
    image_size: int = IMAGE_SIZE

    @property
    def name(self) -> str:
        """Return a readable name that ends in a hash of the whole recipe."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:10]
        return f"{self.dataset}-{self.architecture}-{self.site}-{self.seed}-{digest}"


@dataclass(frozen=True, eq=False)
class Parent:
    """A trained model with what is known of it."""

    recipe: Recipe
    state: dict[str, torch.Tensor]
    num_examples: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/oneshot"))
    parser.add_argument("--datasets", default="blood,dermoscopy")
    parser.add_argument("--architectures", default=",".join(ARCHITECTURES))
    parser.add_argument("--seeds", type=int, help=f"default {SEEDS_OF}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for dataset in arguments.datasets.split(","):
        sites = load_dataset(dataset)
        for architecture in arguments.architectures.split(","):
            for recipe in recipes(dataset, architecture, arguments.seeds):
                get_parent(recipe, sites[recipe.site], arguments.runs)


def load_dataset(dataset: str) -> dict[str, SiteData]:
    """Return the sites of ``blood`` (one, called "all") or ``dermoscopy`` from the folder POPMI_DATA."""
    root = Path(os.environ["POPMI_DATA"])
    if dataset == "blood":
        spec = str(root / "bloodmnist_rebuilt_28.npz")
        return {"all": load_site("all", spec, image_size=IMAGE_SIZE, phantom_images=0, seed=0)}
    found = locate(str(root), image_size=32).sites
    return {site: load_site(site, found[site], image_size=IMAGE_SIZE, phantom_images=0, seed=0) for site in SITES}


def recipes(dataset: str, architecture: str, seeds: int | None = None) -> list[Recipe]:
    """Return the recipes of all parents: one a seed for ``blood``, one a seed at every site for ``dermoscopy``."""
    sites = ("all",) if dataset == "blood" else SITES
    seeds = seeds or SEEDS_OF[dataset]
    family = architecture.removesuffix("_gn")
    images, rate = 1000 * BUDGET[dataset][family], LEARNING_RATE[family]
    return [
        Recipe(dataset, site, architecture, 100 * seed + position, images, rate)
        for seed in range(seeds)
        for position, site in enumerate(sites)
    ]


def get_parent(recipe: Recipe, data: SiteData, runs: Path) -> Parent:
    """Return the parent, trained now if it is not there yet."""
    path = parent_path(recipe, runs)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        model = build_parent(recipe, len(data.classes))
        train(model, data.train, recipe)
        accuracy = float((predict(model, data.val.images).argmax(1) == data.val.targets).mean())
        notes = {"recipe": json.dumps(asdict(recipe)), "seconds": f"{time.perf_counter() - started:.1f}"}
        save_state(path, model.state_dict(), {**notes, "val_accuracy": f"{accuracy:.4f}"})
        print(json.dumps({"parent": recipe.name, "val_accuracy": round(accuracy, 4), **notes}), flush=True)
    return Parent(recipe, load_state(path)[0], len(data.train))


def parent_path(recipe: Recipe, runs: Path) -> Path:
    """Return where a parent is kept."""
    return runs / "parents" / f"{recipe.name}.safetensors"


def build_parent(recipe: Recipe, num_classes: int) -> nn.Module:
    """Return the untrained model."""
    config = ModelConfig(backbone=recipe.architecture, image_size=recipe.image_size)
    return build_model(config, num_classes, seed=recipe.seed)


def train(model: nn.Module, data: ImageSet, recipe: Recipe) -> None:
    """Train in place with AdamW: linear warm-up, then a cosine to zero; leaves the model in evaluation mode."""
    generator = torch.Generator().manual_seed(recipe.seed)
    pixels, target = normalise(torch.from_numpy(data.images), model), torch.from_numpy(data.targets)
    total = recipe.images // recipe.batch_size
    optimizer = torch.optim.AdamW(_groups(model, recipe.weight_decay), lr=recipe.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, total, recipe.warmup))
    model.train()
    for index in _batches(len(target), recipe.batch_size, total, generator):
        turns, mirror = (int(n) for n in torch.randint(0, 8, (2,), generator=generator))
        images = torch.rot90(pixels[index], turns % 4, (2, 3))
        loss = cross_entropy(model(images.flip(3) if mirror % 2 else images), target[index])
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    model.eval()


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    # Biases and norms are not decayed.
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _rate(step: int, total: int, warmup: float) -> float:
    begun = step / max(1.0, warmup * total)
    return min(1.0, begun + 1e-3) if begun < 1 else 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / total))


def _batches(count: int, size: int, total: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield ``total`` batches; every image comes once before any comes again."""
    order = np.empty(0, np.int64)
    for _ in range(total):
        while len(order) < size:
            order = np.concatenate([order, torch.randperm(count, generator=generator).numpy()])
        yield torch.from_numpy(order[:size])
        order = order[size:]


if __name__ == "__main__":
    main()

"""Which published orderings of LEE (Gruver et al. 2023, arXiv:2210.02984) show on small models, trained in minutes.

    POPMI_DATA=... OMP_NUM_THREADS=1 python benchmarks/equivariance/lee_orderings.py --out docs/results

Three claims are looked at: a ViT's error comes mostly from its patch embedding; a convolutional net's from where it
samples (strides) and from nonlinearities; and models that are better trained have less error. Cells (BloodMNIST's
layout, 28 pixels), a ViT and a ResNet-20 after 0, 1, 3 and 8 epochs; no figure is asked to come out one way.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import popmi_core.models  # registers the study's nets
from popmi_core.data import ImageSet
from popmi_core.data.medmnist import read_medmnist
from popmi_core.equivariance.lie import lee_figures, lie_derivatives
from popmi_core.equivariance.lie_layers import layer_terms
from popmi_core.learning.fit import FitConfig, fit
from popmi_core.metrics.discrimination import accuracy

NETS = ("popmi_vit_64", "popmi_resnet20")
EPOCHS = (0, 1, 3, 8)
SAMPLING = ("downsampling", "nonlinearity", "norm and nonlinearity", "pooling")
FILE = "bloodmnist_rebuilt_28.npz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--train", type=int, default=1500, help="images to train on")
    parser.add_argument("--images", type=int, default=24, help="images to measure LEE on")
    options = parser.parse_args()
    site = read_medmnist(Path(os.environ["POPMI_DATA"]) / FILE, image_size=None).to_site("blood", image_size=28)
    started, rows = time.perf_counter(), []
    for name in NETS:
        for epochs in EPOCHS:
            rows.append(measure(name, epochs, site, options))
            print(rows[-1]["net"], epochs, rows[-1]["accuracy"], rows[-1]["lee"]["rotation"]["value"], flush=True)
    found = {"train_images": options.train, "lee_images": options.images, "rows": rows, "claims": claims(rows)}
    found["seconds"] = round(time.perf_counter() - started)
    (options.out / "lee_orderings.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "lee_orderings.md").write_text(page(found))


def measure(name: str, epochs: int, site: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Return accuracy and LEE of one net after so many epochs (its own schedule each time)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = timm.create_model(name, num_classes=len(site.classes)).eval()
    train, test = _first(site.train, options.train), _first(site.test, 500)
    if epochs:
        fit(model, train, _first(site.val, 300), FitConfig(epochs=epochs, choose="last", augment="shifts"))
    model = model.double().eval()
    inputs = popmi_core.models.normalise(torch.from_numpy(test.images), model).double()
    with torch.inference_mode():
        preds = model(inputs).argmax(dim=1).numpy()
    some = inputs[: options.images]
    layers = layer_terms(model, some)
    ends = lee_figures(lie_derivatives(model, some))
    return {
        "net": name,
        "epochs": epochs,
        "accuracy": accuracy(preds, test.targets, len(site.classes)),
        "lee": {generator: lee.relative.to_json() for generator, lee in ends.items()},
        "by_kind": {generator: layers.shares(generator, by_kind=True) for generator in ends},
    }


def claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was claimed, the figures it is judged by, and whether it shows."""
    trained = {row["net"]: row for row in rows if row["epochs"] == EPOCHS[-1]}
    vit, resnet = (trained[name]["by_kind"] for name in NETS)
    patch = {g: next(iter(kinds)) for g, kinds in vit.items()}
    sampling = {g: sum(kinds.get(kind, 0.0) for kind in SAMPLING) for g, kinds in resnet.items()}
    said = [
        {
            "claim": "the trained ViT's largest share is the patch embedding, under every generator",
            "figures": {g: vit[g]["patch embedding"] for g in vit},
            "shows": all(kind == "patch embedding" for kind in patch.values()),
        },
        {
            "claim": "strides, pooling and nonlinearities have most of the trained ResNet's error, every generator",
            "figures": sampling,
            "shows": min(sampling.values()) > 0.5,
        },
    ]
    for name in NETS:
        for generator in ("translation", "rotation"):
            series = [row["lee"][generator]["value"] for row in rows if row["net"] == name and row["epochs"]]
            said.append(
                {
                    "claim": f"{name}, after its first epoch: the longer trained, the lower its LEE under {generator}",
                    "figures": {f"{e} epochs": v for e, v in zip(EPOCHS[1:], series, strict=True)},
                    "shows": all(later < earlier for earlier, later in pairwise(series)),
                }
            )
    return said


def page(found: dict[str, Any]) -> str:
    """Return the results as a page."""
    lines = [
        "# LEE: which published orderings show on small models",
        "",
        f"Cells of 28 pixels, {found['train_images']} training images, shifts as views; LEE of "
        f"{found['lee_images']} test images in float64: the root mean square change of logits per pixel of movement, "
        "over their spread between images (docs/metrics.md), with 95 % intervals over images. One seed. "
        "Untrained nets are shown, not judged: what was published is of trained ones.",
        "",
        "| net | epochs | accuracy | translation | rotation | scale | shear | hyperbolic |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in found["rows"]:
        cells = [f"{v['value']:.3f} ({v['lower']:.3f}–{v['upper']:.3f})" for v in row["lee"].values()]
        lines.append(f"| {row['net']} | {row['epochs']} | {row['accuracy']:.3f} | {' | '.join(cells)} |")
    lines += ["", "## Claims", "", "| claim | shows | figures |", "| --- | --- | --- |"]
    for claim in found["claims"]:
        figures = ", ".join(f"{name} {value:.2f}" for name, value in claim["figures"].items())
        lines.append(f"| {claim['claim']} | {'yes' if claim['shows'] else '**no**'} | {figures} |")
    lines += ["", "## By kind of layer, rotation", "", "| net | epochs | shares |", "| --- | --- | --- |"]
    for row in found["rows"]:
        kinds = [f"{kind} {share:.0%}" for kind, share in row["by_kind"]["rotation"].items() if share >= 0.005]
        lines.append(f"| {row['net']} | {row['epochs']} | {', '.join(kinds)} |")
    command = "    POPMI_DATA=... OMP_NUM_THREADS=1 python benchmarks/equivariance/lee_orderings.py"
    return "\n".join([*lines, "", command, ""])


def _first(images: ImageSet, count: int) -> ImageSet:
    return ImageSet(images.images[:count], images.targets[:count])


if __name__ == "__main__":
    main()

"""A real pair: what `popmi barrier` and `popmi fuse` say of two ViTs trained on the same images from different starts.

    POPMI_DATA=folder python benchmarks/oneshot/real_pair.py --out docs/results/real_pair

The parents are the first two of ``parents.py`` for BloodMNIST and ``popmi_vit_64``, trained now where --runs has none.
Both commands run as docs/fuse.md says, once a way of matching, in processes of their own. Writes
real_pair.json (the commands' figures), real_pair.md (the tables of docs/fuse.md) and the
pictures of `popmi barrier --match weights` that show no image's features. Nothing is chosen here: every figure is of
the test split, and matching looks at training images only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from parents import get_parent, load_dataset, parent_path, recipes

DATASET, ARCHITECTURE = "blood", "popmi_vit_64"
DATA = "bloodmnist_rebuilt_28.npz"
# Ways of matching, each with the rule that docs/fuse.md names with it.
RULES = {"weights": "opm", "activations": "opm", "learned": "opm-soup"}
MATCHES = tuple(RULES)
# The map of features (t-SNE) has a point an image, so it stays where it is drawn.
PICTURES = ("line", "heads", "cka", "bound")
# What is kept of a command's JSON: figures, not how long it took or what was not used.
KEPT = {
    "barrier": ("models", "match", "split", "images", "before", "after", "scores", "note", "bound", "heads", "cka"),
    "fuse": ("parents", "rule", "match", "reference", "weights", "matching", "distances", "notes", "judged"),
}
CONSTANTS = {"steepest_step": "the steepest step", "largest_gradient": "the largest gradient"}
PRODUCTS = {"query_key": "query-key", "value_output": "output-value"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/oneshot"))
    parser.add_argument("--out", type=Path, required=True, help="path without ending; .json, .md and pictures")
    arguments = parser.parse_args()
    files = parents(arguments.runs)
    common = ["--model", ARCHITECTURE, "--data", str(Path(os.environ["POPMI_DATA"]) / DATA)]
    found: dict[str, Any] = {"barrier": {}, "fuse": {"average": popmi("fuse", *files, *common, "--rule", "average")}}
    with tempfile.TemporaryDirectory() as folder:
        for match, rule in RULES.items():
            out = Path(folder) / match
            found["barrier"][match] = popmi("barrier", *files, *common, "--match", match, "--out", str(out))
            found["fuse"][match] = popmi("fuse", *files, *common, "--rule", rule, "--match", match)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        for name in PICTURES:
            target = arguments.out.with_name(f"{arguments.out.name}_{name}.svg")
            shutil.copyfile(Path(folder) / MATCHES[0] / f"{name}.svg", target)
    arguments.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(report(found))


def parents(runs: Path) -> list[str]:
    """Return the files of the first two parents, trained now where they are not there."""
    import torch

    torch.set_num_threads(1)
    sites, pair = load_dataset(DATASET), recipes(DATASET, ARCHITECTURE, 2)
    for recipe in pair:
        get_parent(recipe, sites[recipe.site], runs)
    return [str(parent_path(recipe, runs)) for recipe in pair]


def popmi(*arguments: str) -> dict[str, Any]:
    """Return the figures that a command of POPMI prints as JSON."""
    print(*[Path(part).name for part in arguments], flush=True)
    command = [str(Path(sys.executable).with_name("popmi")), *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures = json.loads(done.stdout)
    return {key: figures[key] for key in KEPT[arguments[0]]}


def report(found: dict[str, Any]) -> str:
    """Return the tables of docs/fuse.md."""
    some = found["barrier"][MATCHES[0]]
    judged = found["fuse"]["average"]["judged"]
    count = sum(some["images"].values())
    files = " and ".join(f"`{model['file']}`" for model in some["models"])
    lines = [
        "Printed by `python benchmarks/oneshot/real_pair.py --out docs/results/real_pair`. A and B are",
        f"{files}.",
        f"`popmi barrier`: {count} {some['split']} images, {len(some['before']['alpha'])} places; `popmi fuse`: all "
        f"{judged['images']} {judged['split']} images.",
        "",
        *path_table(found),
        "",
        *bound_table(found),
        "",
        *heads_table(found),
        "",
        *layers_table(found),
    ]
    return "\n".join(lines) + "\n"


def path_table(found: dict[str, Any]) -> list[str]:
    """Return barriers, and what half way and fused models reach."""
    barriers = [found["barrier"][match] for match in MATCHES]
    before, scores = barriers[0]["before"], barriers[0]["scores"]
    judged = {name: row["judged"]["scores"] for name, row in found["fuse"].items()}
    ends = judged["average"]
    parents = [f"{score['accuracy']:.3f}" for name, score in ends.items() if name != "fused"]
    rows = [
        ["loss barrier, nats", before["barrier"], *(row["after"]["barrier"] for row in barriers)],
        ["accuracy barrier", before["accuracy_barrier"], *(row["after"]["accuracy_barrier"] for row in barriers)],
        ["distance of the two in weights", before["distance"], *(row["after"]["distance"] for row in barriers)],
        [
            f"accuracy half way (A {scores['A']['accuracy']:.3f}, B {scores['B']['accuracy']:.3f}, both as an "
            f"ensemble {scores['ensemble (two models)']['accuracy']:.3f})",
            *(scores["plain average"]["accuracy"], *(row["scores"]["aligned average"]["accuracy"] for row in barriers)),
        ],
        ["the same, heads averaged as products", None, *(row["scores"]["OPM"]["accuracy"] for row in barriers)],
        [
            f"`popmi fuse` (parents {' and '.join(parents)}) by `--rule {', '.join(['average', *RULES.values()])}`",
            *(ends["fused"]["accuracy"], *(judged[match]["fused"]["accuracy"] for match in MATCHES)),
        ],
    ]
    head = ["", "before", *(f"`--match {match}`" for match in MATCHES)]
    return table(head, [[name, *map(figure, values)] for name, *values in rows])


def bound_table(found: dict[str, Any]) -> list[str]:
    """Return K, and where each form of proposition 2 is broken or says nothing, by constant and way of matching."""
    rows = []
    for kind, told in CONSTANTS.items():
        bounds = [found["barrier"][match]["bound"][kind] for match in MATCHES]
        rows.append([f"K from {told}, nats a unit of weight", *(f"{bound['lipschitz']:.3g}" for bound in bounds)])
        for form in ("stated", "provable", "tight"):
            cells = [
                f"{max(bound[form]['values']):.3g} / {verdict(bound, form, found['barrier'][match]['after']['alpha'])}"
                for match, bound in zip(MATCHES, bounds, strict=True)
            ]
            rows.append([f"{form} form: its top in nats / what it is worth", *cells])
    trivial = found["barrier"][MATCHES[0]]["bound"]["steepest_step"]["trivial"]
    head = [f"an answer without looking costs {trivial:.3f} nats", *(f"`--match {match}`" for match in MATCHES)]
    return table(head, rows)


def verdict(bound: dict[str, Any], form: str, alphas: list[float]) -> str:
    """Return at which places a form is broken, or vacuous, as shares of B."""
    values = bound[form]["values"]
    if bound[form]["broken_points"]:
        return f"**broken** at {bound[form]['broken_points']} of {len(alphas)} places"
    vacuous = [alpha for alpha, value in zip(alphas, values, strict=True) if value >= bound["trivial"]]
    if not vacuous:
        return "holds, nowhere vacuous"
    return f"holds, vacuous at {len(vacuous)} places, {vacuous[0]:.2f} to {vacuous[-1]:.2f}"


def heads_table(found: dict[str, Any]) -> list[str]:
    """Return the mean cosine of heads in the same place."""
    rows = []
    for layer in found["barrier"][MATCHES[0]]["heads"]["before"]:
        for product, told in PRODUCTS.items():
            sides = [found["barrier"][MATCHES[0]]["heads"]["before"]]
            sides += [found["barrier"][match]["heads"]["after"] for match in MATCHES]
            means = [statistics.mean(row[i] for i, row in enumerate(side[layer][product])) for side in sides]
            rows.append([f"`{layer}`, {told}", *map(figure, means)])
    return table(["cosine of heads in the same place, mean", "before", *(f"`--match {m}`" for m in MATCHES)], rows)


def layers_table(found: dict[str, Any]) -> list[str]:
    """Return linear CKA of every block: of the parents, and of averages with them."""
    rows = []
    for layer, before in found["barrier"][MATCHES[0]]["cka"].items():
        after = [found["barrier"][match]["cka"][layer] for match in MATCHES]
        pairs = [f"{row['A, OPM']:.3f} and {row['B, OPM']:.3f}" for row in after]
        plain = f"{before['A, plain average']:.3f} and {before['B, plain average']:.3f}"
        rows.append([f"`{layer}`", figure(before["A, B"]), plain, *pairs])
    head = ["linear CKA", "A with B", "plain average with A and B", *(f"OPM's, `--match {m}`" for m in MATCHES)]
    return table(head, rows)


def figure(value: float | None) -> str:
    """Return a figure with three decimals, never a negative zero; nothing for None."""
    return "" if value is None else f"{round(value, 3) + 0.0:.3f}"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a markdown table."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


if __name__ == "__main__":
    main()

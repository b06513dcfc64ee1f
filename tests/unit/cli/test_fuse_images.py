"""The images that `popmi fuse` and `popmi barrier` are given: which are looked at, and what is said where none are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from popmi_core.cli.main import commands
from popmi_core.cli.sites import read_sites
from popmi_core.errors import DataError

MICRO = ("--model", "popmi_vit_micro", "--model-arg", "depth=1")
Write = Callable[..., Path]


@pytest.fixture
def pair(model_file: Write) -> tuple[Path, Path]:
    return model_file("first", depth=1), model_file("second", 1, depth=1)


@pytest.fixture
def folder(cells: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a folder of some of the images, so many in each split."""

    def write(name: str = "folder", **splits: int) -> Path:
        target = tmp_path / name
        target.mkdir(parents=True)
        with np.load(cells) as content:
            images, labels = content["train_images"], content["train_labels"][:, 0]
        rows = ["image,label,split"]
        for number, split in enumerate(split for split, count in splits.items() for _ in range(count)):
            Image.fromarray(images[number]).save(target / f"{number}.png")
            rows.append(f"{number}.png,class{labels[number]},{split}")
        (target / "labels.csv").write_text("\n".join(rows) + "\n")
        return target

    return write


def _say(command: str, *arguments: str | Path) -> str:
    result = CliRunner().invoke(commands, [command, *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_rules_that_choose_nothing_need_no_validation_images(pair: tuple[Path, Path], folder: Write) -> None:
    data = ("--data", folder(external=16))

    for rule in ("average", "opm", "ot-fusion"):
        figures = json.loads(_say("fuse", *pair, *MICRO, "--rule", rule, *data, "--json"))
        assert figures["judged"]["split"] == "external"
        assert figures["judged"]["images"] == 16


@pytest.mark.parametrize("option", [("--rule", "greedy-soup"), ("--rule", "opm-greedy-soup"), ("--gate", "opm")])
def test_who_chooses_says_that_validation_images_are_missing(
    option: tuple[str, str], pair: tuple[Path, Path], folder: Write
) -> None:
    with pytest.raises(
        DataError, match=r"the split val\. Rules that choose and --gate score on validation images: give"
    ):
        _say("fuse", *pair, *MICRO, *option, "--data", folder(external=16))


@pytest.mark.parametrize("option", [("--rule", "regmean"), ("--match", "activations"), ("--repair",)])
def test_who_looks_at_layers_says_that_training_images_are_missing(
    option: tuple[str, ...], pair: tuple[Path, Path], folder: Write
) -> None:
    with pytest.raises(DataError, match=r"the split train\. RegMean, activations, learned maps and --repair look at"):
        _say("fuse", *pair, *MICRO, *option, "--data", folder(external=16))


def test_barrier_says_what_learning_lacks_and_offers_a_split_for_judging(
    pair: tuple[Path, Path], folder: Write
) -> None:
    data = ("--data", folder(external=16))

    with pytest.raises(
        DataError, match=r"the split train\. --match learned looks at training images: .* --match weights"
    ):
        _say("barrier", *pair, *MICRO, *data, "--match", "learned", "--split", "external")
    with pytest.raises(DataError, match=r"the split test\. Choose another with --split"):
        _say("barrier", *pair, *MICRO, *data)


@pytest.mark.parametrize("rule", ["ot-fusion", "ot-fusion-soft"])
def test_ot_fusion_compares_weights_without_images_and_activations_with_them(
    rule: str, pair: tuple[Path, Path], folder: Write
) -> None:
    common = ("fuse", *pair, *MICRO, "--rule", rule)

    assert "all: units compared by weights\n" in _say(*common)
    assert "all: units compared by weights\n" in _say(*common, "--data", folder("external", external=16))
    assert "all: units compared by activations" in _say(*common, "--data", folder("whole", train=32, val=8, test=8))


def test_no_data_set_takes_the_place_of_another(folder: Write) -> None:
    specs = [str(folder(name, external=8 + number)) for number, name in enumerate(("x/a-3", "y/a", "z/a"))]

    for order in (specs, specs[::-1]):
        sites = read_sites(order, image_size=8, classes=8)
        assert sorted(len(data.external) for data in sites.values()) == [8, 9, 10]

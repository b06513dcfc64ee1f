"""`popmi fuse --reference in-turn`: what every model is matched to, and what the place on the line does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from popmi_core.checkpoints import save_state
from popmi_core.cli import aligning
from popmi_core.cli.main import commands
from popmi_core.cli.placing import in_turn
from popmi_core.fusion import Update
from popmi_core.fusion.path import line_judge
from popmi_core.fusion.shelf import Shelf
from popmi_core.matching import Matched, apply, describe_model, random_element
from popmi_core.matching.symmetry import Symmetry

Write = Callable[..., Path]


class Recorder:
    """Stands for the aligner: moves nothing, remembers what every model was matched to and at which share."""

    symmetry = Symmetry("none", {}, ())

    def __init__(self) -> None:
        self.asked: list[tuple[float, float, str]] = []

    def __call__(self, reference, *, share=0.5):
        self.against = float(reference["w"]), share
        return self

    def match(self, state, *, label, seen=None):
        self.asked.append((round(self.against[0], 6), round(self.against[1], 6), label))
        return Matched(state, {}, {})


def _updates(*values: float, counts: tuple[int, ...]) -> list[Update]:
    pairs = zip("abcd", values, counts, strict=False)
    return [Update(name, {"w": torch.tensor(value, dtype=torch.float64)}, count) for name, value, count in pairs]


def test_each_model_meets_the_mean_of_those_before_it_and_then_of_all_others() -> None:
    recorder = Recorder()

    in_turn(_updates(0, 6, 9, counts=(1, 1, 2)), recorder, lambda label: None, Shelf(None), again=True)

    first_turn, second_turn = recorder.asked[:3], recorder.asked[3:]
    assert first_turn == [(0, 0.5, "a"), (0, 0.5, "b"), (3, 0.5, "c")]
    assert second_turn == [(8, 0.25, "a"), (6, 0.25, "b"), (3, 0.5, "c")]


def test_the_share_is_the_models_part_of_the_average_up_to_it() -> None:
    recorder = Recorder()

    in_turn(_updates(0, 6, 9, 1, counts=(1, 1, 1, 1)), recorder, lambda label: None, Shelf(None), again=False)

    assert [share for _, share, _ in recorder.asked] == [0.5, 0.5, 0.333333, 0.25]


def test_two_models_have_no_second_turn() -> None:
    recorder = Recorder()

    in_turn(_updates(0, 6, counts=(1, 1)), recorder, lambda label: None, Shelf(None), again=True)

    assert [label for _, _, label in recorder.asked] == ["a", "b"]


def test_models_that_count_nothing_are_still_put_somewhere() -> None:
    recorder = Recorder()

    in_turn(_updates(2, 6, 9, counts=(0, 0, 3)), recorder, lambda label: None, Shelf(None), again=False)

    assert recorder.asked == [(2, 0.5, "a"), (2, 0.0, "b"), (4, 1.0, "c")]


def _say(*arguments: str | int | Path) -> dict:
    result = CliRunner().invoke(commands, ["fuse", *map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_moved_copies_fuse_in_turn_to_the_one_function(model_file: Write, tmp_path: Path) -> None:
    first, model = model_file("first"), timm.create_model("popmi_vit_micro", num_classes=8).eval()
    symmetry, state = describe_model(model), load_file(first)
    copies = [tmp_path / f"copy{seed}.safetensors" for seed in range(3)]
    for seed, path in enumerate(copies):
        save_state(path, apply(state, symmetry, random_element(symmetry, torch.Generator().manual_seed(seed))))

    out = tmp_path / "fused.safetensors"
    figures = _say(first, *copies, "--model", "popmi_vit_micro", "--reference", "in-turn", "--out", out)

    images, answers = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)), []
    for path in (first, out):
        model.load_state_dict(load_file(path), strict=True)
        with torch.no_grad():
            answers.append(model(images))
    # Weights are float32 and pass through folding and unfolding.
    assert (answers[0] - answers[1]).norm() < 1e-4 * answers[0].norm()
    assert figures["reference"] == "first, each in turn matched to the mean of those before it"


def test_starts_above_one_are_restarts_of_every_descent(model_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Watched(aligning.Matcher):
        def __init__(self, *args, restarts, **kwargs):
            asked.append(restarts)
            super().__init__(*args, restarts=restarts, **kwargs)

    monkeypatch.setattr(aligning, "Matcher", Watched)
    paths = [model_file(label, seed, depth=1) for seed, label in enumerate("ab")]

    figures = _say(*paths, "--model", "popmi_vit_micro", "--model-arg", "depth=1", "--starts", 4)

    assert asked == [3]
    assert figures["starts"] == 4


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_the_place_on_the_line_is_judged_by_what_both_ends_say_there(share: float) -> None:
    model = torch.nn.Linear(3, 2, bias=False)
    first, second = ({"weight": torch.randn(2, 3, generator=torch.Generator().manual_seed(k))} for k in range(2))
    images = torch.randn(5, 3, generator=torch.Generator().manual_seed(9))

    found = line_judge(model, first, second, images, share=share)(second)

    ends = [(images @ state["weight"].T).softmax(1) for state in (first, second)]
    wanted = (1 - share) * ends[0] + share * ends[1]
    said = (images @ ((1 - share) * first["weight"] + share * second["weight"]).T).log_softmax(1)
    # Float32 sums of ten numbers.
    assert found == pytest.approx(-float((wanted * said).sum(1).mean()), rel=1e-5)

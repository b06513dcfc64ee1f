"""The choice of a group: orientation that is the class, orientation that says nothing, and the rule itself."""

import copy
import math

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from popmi_core.adapters import attach
from popmi_core.adapters.soft import soften
from popmi_core.config import AdapterConfig
from popmi_core.data import ImageSet
from popmi_core.errors import ConfigError, ModelError
from popmi_core.learning.choose import (
    Candidate,
    candidates_for,
    candidates_of,
    chance_of,
    choose_group,
    decide,
    sampling_variance,
)
from popmi_core.learning.fit import FitConfig
from popmi_core.metrics import classification_metrics
from popmi_core.metrics.turning import softmax

C1, SOFT, C4, D4 = candidates_of()
SIDE = 16


def build(candidate: Candidate, seed: int):
    torch.manual_seed(seed)
    backbone = VisionTransformer(
        img_size=SIDE, patch_size=4, embed_dim=24, depth=2, num_heads=2, num_classes=2,
        class_token=False, global_pool="avg", fc_norm=False,
    )  # fmt: skip
    if candidate.group == "none":
        return backbone
    model = attach(backbone, group=candidate.group, merge_block=1, adapters="none", seed=seed)
    return soften(model, free_blocks=candidate.free_blocks, image_size=SIDE) if candidate.free_blocks else model


def flat(candidate: Candidate, seed: int):
    """Colours need no more than a linear model, whatever the candidate."""
    torch.manual_seed(seed + len(candidate.name))
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIDE * SIDE, 2))


def arrows(count: int, seed: int) -> ImageSet:
    """Class 0 has its bright bar above the middle, class 1 below: turned by a half, one is the other."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, count)
    images = rng.integers(0, 80, (count, SIDE, SIDE, 3))
    for image, target in zip(images, targets, strict=True):
        top, left = int(rng.integers(1, 6)) + 8 * int(target), int(rng.integers(1, 8))
        image[top : top + 2, left : left + 6] += 170
    return ImageSet(images.astype(np.uint8), targets.astype(np.int64))


def colours(count: int, seed: int) -> ImageSet:
    """The class is the colour of a bar; where it lies says nothing."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, count)
    images = rng.integers(0, 80, (count, SIDE, SIDE, 3))
    for image, target in zip(images, targets, strict=True):
        top, left = int(rng.integers(1, 13)), int(rng.integers(1, 8))
        image[top : top + 2, left : left + 6, target] += 170
    return ImageSet(images.astype(np.uint8), targets.astype(np.int64))


def pilots(make, *, epochs: int):
    config = FitConfig(epochs=epochs, batch_size=16, learning_rate=5e-3, weight_decay=0.01)
    return choose_group(build, make(160, 1), make(100, 2), config, candidates=(C1, SOFT, D4), seeds=1)


def test_where_orientation_is_the_class_no_exact_group_is_chosen():
    choice = pilots(arrows, epochs=20)
    assert choice.chosen in (C1, SOFT)
    # An exact model gives both classes the same distribution of answers.
    assert choice.means["D4"] < 0.7
    assert choice.means[choice.chosen.name] > 0.9
    assert "every larger group falls short" in choice.sentence
    assert f"{choice.means['D4']:.3f}" in choice.sentence


def test_where_orientation_says_nothing_the_largest_group_is_free():
    choice = pilots(colours, epochs=6)
    assert choice.chosen == D4
    assert f"{choice.means[choice.chosen.name]:.3f}" in choice.sentence
    assert "100 validation images" in choice.sentence


def test_the_same_seed_decides_alike_and_counts_up():
    seen = []
    config = FitConfig(epochs=10, batch_size=8, learning_rate=0.02, seed=4)
    runs = [
        choose_group(flat, colours(120, 1), colours(60, 2), config, candidates=(C1, C4), seeds=2, on_pilot=on)
        for on in (lambda *told: seen.append(told), None)
    ]
    assert runs[0] == runs[1]
    assert [(candidate.name, seed) for candidate, seed, _ in seen] == [("C1", 4), ("C1", 5), ("C4", 4), ("C4", 5)]
    assert runs[0].to_json()["chosen"]["group"] in ("none", "C4")


def test_the_rule_is_one_standard_error_and_the_error_is_the_equation():
    scores = {C1: (0.90, 0.94), SOFT: (0.90, 0.90), C4: (0.89, 0.89), D4: (0.80, 0.80)}
    choice = decide(scores, counts=(100, 100), metric="balanced_accuracy")
    # Variance of (0.90, 0.94) is 0.0008; best mean 0.92.
    assert choice.standard_error == pytest.approx(math.sqrt(0.0008 / 2 + 0.92 * 0.08 / 200))
    assert choice.chosen == SOFT
    assert choice.sentence == (
        "soft C4: mean balanced accuracy 0.900 over 2 pilots and 200 validation images is within one standard error "
        "(0.028) of the best, C1 with 0.920; every larger group falls short of it by more (C4 0.890, D4 0.800; "
        "standard error 0.028)."
    )


def test_equal_scores_give_the_largest_group_and_perfect_ones_no_leeway():
    assert decide({C1: (0.8,), C4: (0.8,), D4: (0.8,)}, counts=(25, 25), metric="accuracy").chosen == D4
    perfect = decide({C1: (1.0,), C4: (1.0,), D4: (0.99,)}, counts=(25, 25), metric="auroc")
    assert perfect.chosen == C4
    assert perfect.sentence.startswith("C4: mean AUROC 1.000 over 1 pilot and 50 validation images")
    alone = decide({C1: (0.8,)}, counts=(25, 25), metric="accuracy")
    assert alone.sentence == "C1: mean accuracy 0.800 over 1 pilot and 50 validation images is the best."


def test_a_candidate_that_cannot_be_built_is_left_out_and_told():
    def only_some(candidate, seed):
        if candidate.group == "D4":
            raise ModelError("no mirror images here")
        return flat(candidate, seed)

    config = FitConfig(epochs=10, batch_size=8, learning_rate=0.02)
    choice = choose_group(only_some, colours(120, 1), colours(60, 2), config, candidates=(C1, D4), seeds=1)
    assert choice.left_out == {"D4": "no mirror images here"}
    assert "not tried: D4" in choice.sentence
    with pytest.raises(ModelError, match="no mirror images here"):
        choose_group(only_some, colours(32, 1), colours(20, 2), config, candidates=(D4,), seeds=1)


def test_pilots_are_never_turned(monkeypatch):
    seen = []

    def spy(model, train, val, config):
        seen.append(config.augment)
        return fitted

    fitted = copy.copy(type("Fitted", (), {"best": type("Epoch", (), {"figures": {"balanced_accuracy": 0.9}})()})())
    monkeypatch.setattr("popmi_core.learning.choose.fit", spy)
    for augment in ("dihedral+shifts", "quarter+shifts", "quarter", "rotations", "none"):
        config = FitConfig(epochs=1, augment=augment)
        choose_group(build, colours(8, 1), colours(8, 2), config, candidates=(C1,), seeds=1)
    assert seen == ["shifts", "shifts", "none", "none", "none"]


def test_what_cannot_be_decided_is_refused():
    with pytest.raises(ConfigError, match="groups are not chosen by 'nll', expected one of balanced_accuracy"):
        decide({C1: (0.5,)}, counts=(2, 3), metric="nll")
    with pytest.raises(ConfigError, match="groups are not chosen by 'last'"):
        choose_group(build, colours(8, 1), colours(8, 2), FitConfig(choose="last"))
    with pytest.raises(ConfigError, match="the AUROC of the pilots of C4 is nan"):
        decide({C1: (0.5,), C4: (math.nan,)}, counts=(2, 3), metric="auroc")
    with pytest.raises(ConfigError, match=r"no pilot learnt anything: the best mean accuracy is 0.550 \(C1; standard"):
        decide({C1: (0.55,), C4: (0.5,)}, counts=(25, 25), metric="accuracy", chance=0.5)
    with pytest.raises(ConfigError, match="there is no pilot to choose a group by"):
        decide({}, counts=(2, 3), metric="auroc")
    with pytest.raises(ConfigError, match="seeds is 0, expected at least 1"):
        choose_group(build, colours(8, 1), colours(8, 2), FitConfig(), seeds=0)


def test_without_free_blocks_there_is_no_soft_candidate():
    assert [candidate.name for candidate in candidates_of(0)] == ["C1", "C4", "D4"]
    assert candidates_of(2)[1] == Candidate("soft C4", "C4", 2)


def test_chance_is_what_one_answer_for_all_is_worth():
    targets = np.array([0, 0, 0, 2])
    assert chance_of(targets, "accuracy") == 0.75
    assert chance_of(targets, "balanced_accuracy") == 0.5
    assert chance_of(targets, "auroc") == 0.5


def test_where_only_adapters_train_the_smallest_group_has_them_too():
    adapter = AdapterConfig(group="auto", train="adapter")
    assert [candidate.group for candidate in candidates_for(adapter)] == ["C1", "C4", "C4", "D4"]
    assert candidates_for(AdapterConfig(group="auto"))[0].group == "none"
    with pytest.raises(ConfigError, match="trained from scratch"):
        candidates_for(AdapterConfig(group="auto", train="adapter", fields="regular"))


@pytest.mark.parametrize("counts", [(8, 40, 150), (30, 170)])
@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "auroc"])
def test_the_sampling_variance_is_that_of_figures_of_drawn_images(metric, counts):
    rng, figures = np.random.default_rng(0), []
    targets = np.repeat(np.arange(len(counts)), counts)
    for _ in range(1500):
        # Every class is told apart equally well: its own score is one standard deviation higher.
        scores = rng.standard_normal((len(targets), len(counts)))
        scores[np.arange(len(targets)), targets] += 1.2
        figures.append(classification_metrics(softmax(scores), targets)[metric])
    told, found = sampling_variance(float(np.mean(figures)), counts, metric), float(np.var(figures))
    # The equation takes curves of classes to be independent and of one shape, and all classes to be answered alike.
    assert 0.7 * found < told < 1.4 * found


def test_a_rare_class_makes_balanced_accuracy_uncertain():
    even, rare = (sampling_variance(0.9, counts, "balanced_accuracy") for counts in ((100, 100), (195, 5)))
    assert even == pytest.approx(0.9 * 0.1 / 200)
    assert rare > 10 * even
    assert sampling_variance(0.9, (200, 0), "balanced_accuracy") == pytest.approx(0.9 * 0.1 / 200)
    assert sampling_variance(0.9, (200, 0), "auroc") == 0.0
    with pytest.raises(ConfigError, match="there is no validation image"):
        sampling_variance(0.9, (0, 0), "accuracy")
    with pytest.raises(ConfigError, match="groups are not chosen by 'ece'"):
        sampling_variance(0.9, (5, 5), "ece")

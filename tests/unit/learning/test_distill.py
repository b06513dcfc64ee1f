"""Distillation: zero on itself, labels unread, the student exact whatever it learns, and close to its teacher."""

import copy

import numpy as np
import pytest
import timm
import torch
from torch import nn

import popmi_core.models  # noqa: F401  (registers the presets)
from popmi_core.adapters import attach, detach, equivariance_error, fold
from popmi_core.adapters.soft import soften
from popmi_core.errors import ConfigError, DataError, ModelError
from popmi_core.learning.cost import flops, images_per_second
from popmi_core.learning.distill import DistillConfig, distill, distillation_loss, student_of
from popmi_core.learning.fit import FitConfig


def teacher(group: str = "C4", **options):
    torch.manual_seed(0)
    backbone = timm.create_model("popmi_vit_micro", num_classes=3).eval()
    # Larger weights than timm's start: its logits would all but agree between images.
    for p in backbone.parameters():
        p.data.mul_(2)
    return attach(backbone, group=group, merge_block=1, adapters="none", **options)


def images(count: int = 60, seed: int = 0) -> np.ndarray:
    blobs = torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    large = nn.functional.interpolate(blobs, size=32, mode="bicubic")
    return (128 + 60 * large).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def inputs(count: int = 4) -> torch.Tensor:
    return torch.from_numpy(images(count)).permute(0, 3, 1, 2).float() / 127.5 - 1


def config(epochs: int = 3, **changes) -> DistillConfig:
    return DistillConfig(
        fit=FitConfig(epochs=epochs, batch_size=16, learning_rate=2e-3, augment="shifts", choose="nll"), **changes
    )


def test_onto_itself_and_onto_an_equal_copy_the_loss_is_zero():
    model = teacher()
    assert distillation_loss(model, model, inputs(), config()).item() == 0
    assert distillation_loss(model, copy.deepcopy(model), inputs(), config()).item() == 0
    # At block 0 it is its own student: tying tied weights changes nothing but rounding.
    folded = attach(detach(model), group="C4", merge_block=0, adapters="none")
    assert distillation_loss(folded, student_of(folded), inputs(), config()).item() < 1e-9


def test_the_loss_is_the_equation():
    model, student = teacher(), student_of(teacher())
    with torch.no_grad():
        wanted, logits = model(inputs()), student(inputs())
        found = distillation_loss(model, student, inputs(), config(temperature=3.0, logits=0.7, features=0.0)).item()
    t, s = (torch.softmax(each.double() / 3, dim=1) for each in (wanted, logits))
    expected = 0.7 * 9 * (t * (t.log() - s.log())).sum(1).mean()
    # A difference of logarithms of about one in float32 (1e-7), times 0.7 and 9.
    assert found == pytest.approx(expected.item(), abs=1e-6)
    assert found > 2e-5


def test_a_turned_image_gives_the_same_loss_so_that_turned_views_teach_nothing():
    model, student = teacher("D4"), student_of(teacher("D4"))
    losses = [
        distillation_loss(model, student, each, config()).item() for each in (inputs(), inputs().rot90(1, (2, 3)))
    ]
    # The float32 residue of exact models.
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_student_learns_its_teacher_and_stays_exact_at_the_cost_of_the_plain_backbone():
    model = teacher("D4")
    student = student_of(model)
    found = distill(model, student, images(), config(epochs=15))
    assert found.fitted.best.figures["divergence"] < 0.5 * found.before["divergence"]
    assert found.images == (54, 6)
    assert equivariance_error(student, inputs(), student.group) < 1e-4
    plain = fold(student)
    assert (plain(inputs()) - student(inputs())).abs().max() < 1e-4
    assert flops(student, inputs(1)) == flops(plain, inputs(1))
    assert flops(model, inputs(1)) > 2 * flops(plain, inputs(1))


def test_a_student_that_only_loses_by_moving_is_kept_as_it_started():
    model = attach(detach(teacher()), group="C4", merge_block=0, adapters="none")
    student = student_of(model)
    started = copy.deepcopy(student.state_dict())
    found = distill(model, student, images(), config(epochs=1, features=0.0))
    assert found.fitted.history[0].figures["nll"] > found.before["nll"]
    assert (found.fitted.best.number, found.fitted.best.figures) == (0, found.before)
    for kept in (student.state_dict(), found.fitted.state):
        assert all(torch.equal(kept[name], tensor) for name, tensor in started.items())


def test_the_teacher_is_left_alone_and_the_same_seed_gives_the_same_bits():
    model = teacher()
    before = copy.deepcopy(model.state_dict())
    states = [distill(model, student_of(model), images(20), config(epochs=1)).fitted.state for _ in range(2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert "forward_head" not in vars(model.backbone)


def test_a_student_in_regular_fields_starts_from_its_teacher_and_learns_exactly_from_logits_alone():
    model = teacher()
    student = student_of(model, fields="regular")
    # The first channel of each field, of the embedding too.
    assert torch.equal(student.backbone.patch_embed.proj.weight[::4], model.backbone.patch_embed.proj.weight[::4])
    logits_only = config(features=0.0)

    found = distill(model, student, images(), logits_only)

    assert student.fields == "regular"
    # The float32 residue of exact models.
    assert equivariance_error(student, inputs(), student.group) < 1e-4
    assert found.fitted.best.figures["divergence"] < found.before["divergence"]
    with pytest.raises(ConfigError, match=r"features that turn with the image, .* Set the weight of features to 0"):
        distill(model, student, images(), config())
    for wrong in ({"merge_block": 1}, {"adapters": "lora"}):
        with pytest.raises(ModelError, match=f"fields 'regular' with {next(iter(wrong))}"):
            student_of(model, fields="regular", **wrong)
    with pytest.raises(ModelError, match="fields 'octic' is not known"):
        student_of(model, fields="octic")


def test_a_student_that_is_not_exact_at_the_size_is_refused():
    late = attach(timm.create_model("resnet10t", num_classes=3).eval(), group="C4", adapters="none")
    with pytest.raises(ModelError, match="ResNet at 64x64 pixels, merged after block 0, is not exact under C4"):
        student_of(late, image_size=64)
    assert student_of(late, merge_block=4, image_size=64).merge_block == 4


def test_what_cannot_be_distilled_is_refused():
    model = teacher()
    with pytest.raises(DataError, match="there are 9 images to distill on, expected at least 10"):
        distill(model, student_of(model), images(9), config())
    other = attach(timm.create_model("popmi_vit_micro", num_classes=4).eval(), group="C4", merge_block=0)
    with pytest.raises(ModelError, match=r"the student's logits have shape \(4,\), the teacher's \(3,\)"):
        distill(model, other, images(12), config())
    wide = attach(timm.create_model("popmi_vit_micro", num_classes=3, embed_dim=64).eval(), group="C4", merge_block=0)
    with pytest.raises(ModelError, match=r"the student's features have shape .* Set the weight of features to 0"):
        distillation_loss(model, wide, inputs(), config())
    with pytest.raises(ModelError, match="the teacher sees orientation in its last blocks"):
        student_of(soften(model, free_blocks=1, image_size=32))
    with pytest.raises(ModelError, match="Linear has no forward_head"):
        distillation_loss(nn.Linear(2, 2), nn.Linear(2, 2), torch.ones(1, 2), config())


@pytest.mark.parametrize("changes", [{"temperature": 0.0}, {"logits": 0.0, "features": 0.0}, {"held_out": 1.0}])
def test_numbers_out_of_range_are_refused(changes):
    with pytest.raises(ConfigError, match=r"temperature .* expected T > 0, weights >= 0 that are not both 0"):
        DistillConfig(**changes)


def test_operations_are_those_one_can_count_by_hand():
    layer = nn.Conv2d(3, 5, 3, padding=1)
    # 5 x 3 x 9 multiply-adds at each of 64 places, two operations each.
    assert flops(layer, torch.zeros(1, 3, 8, 8)) == 2 * 5 * 3 * 9 * 64
    assert images_per_second(layer, torch.zeros(4, 3, 8, 8)) > 0

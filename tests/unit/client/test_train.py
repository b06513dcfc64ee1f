"""Local training: what moves, what does not, and that it moves the same way twice."""

import numpy as np
import pytest
import torch
from torch import nn

from client.train import build_optimizer, train_locally, trained_parameters
from popmi_core.config import LocalConfig
from popmi_core.data.images import ImageSet
from popmi_core.errors import DataError, ModelError, UpdateError
from popmi_core.learning.norms import set_training_mode

CLASSES = 3


def make_data(count: int = 48, side: int = 8, seed: int = 0) -> ImageSet:
    """Images whose brightest colour channel is their class: learnable in seconds, whatever way they are turned."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, CLASSES, count)
    images = rng.integers(0, 120, (count, side, side, 3)).astype(np.uint8)
    images[np.arange(count), :, :, targets] += 100
    return ImageSet(images, targets.astype(np.int64))


def to_float(images: torch.Tensor) -> torch.Tensor:
    return images.permute(0, 3, 1, 2).float() / 255 - 0.5


def make_model(*, norm: type[nn.Module] | None = None, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    middle = [norm(8)] if norm else []
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), *middle, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
    )


def train(model: nn.Module, data: ImageSet | None = None, *, seed: int = 0, reference=None, **local):
    local = {"epochs": 2, "batch_size": 16, **local}
    return train_locally(
        model,
        make_data() if data is None else data,
        LocalConfig(**local),
        num_classes=CLASSES,
        normalise=to_float,
        seed=seed,
        reference=reference,
    )


def parameters_of(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_training_lowers_the_loss_and_reports_every_epoch():
    report = train(make_model(), epochs=6, learning_rate=1e-2)
    assert len(report.loss_by_epoch) == 6
    assert report.loss == report.loss_by_epoch[-1]
    # The classes differ by colour alone: a tenth of the loss is far below what six epochs take off.
    assert report.loss < 0.9 * report.loss_by_epoch[0]
    assert report.num_examples == 48
    assert report.steps == 6 * 3
    assert report.seconds > 0


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_same_seed_gives_bit_identical_parameters_and_another_seed_does_not(optimizer):
    models = [make_model() for _ in range(3)]
    for model, seed in zip(models, (7, 7, 8), strict=True):
        train(model, seed=seed, optimizer=optimizer, learning_rate=0.01)
    first, again, other = (parameters_of(model) for model in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_dropout_is_seeded_and_the_global_stream_is_left_alone():
    def one(seed: int) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, CLASSES))
        torch.seed()
        before = torch.get_rng_state()
        # One image, no views: nothing but dropout is random.
        train(model, make_data(1), seed=seed, augment=False)
        assert torch.equal(before, torch.get_rng_state())
        return parameters_of(model)

    assert torch.equal(one(3), one(3))
    assert not torch.equal(one(3), one(4))


def test_no_image_is_dropped_and_a_lone_last_image_does_not_break_batch_norm():
    seen = []

    def count(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return to_float(images)

    model = make_model(norm=nn.BatchNorm2d)
    train_locally(model, make_data(33), LocalConfig(batch_size=16), num_classes=CLASSES, normalise=count, seed=0)
    assert seen == [11, 11, 11]


def test_a_site_with_one_image_trains_a_model_with_batch_norm_on_vectors():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4), nn.Linear(4, CLASSES))
    before = parameters_of(model)
    train(model, make_data(1))
    assert not torch.equal(before, parameters_of(model))


def test_frozen_parameters_stay_and_their_norms_keep_their_statistics():
    model = make_model(norm=nn.BatchNorm2d)
    for p in model[:2].parameters():
        p.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"5.weight", "5.bias"}


def test_a_norm_without_parameters_follows_the_part_it_is_in():
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8, affine=False), nn.Linear(8, 3))
    model = nn.Sequential(backbone, head)
    backbone.requires_grad_(False)
    set_training_mode(model)
    assert not backbone[1].training
    assert head[2].training


def test_training_leaves_the_model_ready_to_evaluate_and_the_images_untouched():
    data, model = make_data(), make_model()
    before = data.images.copy()
    train(model, data)
    assert not model.training
    assert np.array_equal(before, data.images)


def test_only_tensors_with_two_axes_or_more_are_decayed():
    optimizer = build_optimizer(list(make_model().parameters()), LocalConfig(weight_decay=0.3))
    decay = {group["weight_decay"]: {p.ndim for p in group["params"]} for group in optimizer.param_groups}
    assert decay == {0.3: {2, 4}, 0.0: {1}}


def test_an_empty_training_set_is_refused():
    with pytest.raises(DataError, match="training set is empty"):
        train(make_model(), make_data().subset(np.arange(0)))


def test_a_model_with_nothing_to_train_is_refused():
    with pytest.raises(ModelError, match="every parameter of the model is frozen"):
        trained_parameters(make_model().requires_grad_(False))


def test_a_diverged_training_is_an_error_and_no_update():
    with pytest.raises(UpdateError, match=r"epoch \d: the training loss is (nan|inf)"):
        train(make_model(), optimizer="sgd", learning_rate=1e30)

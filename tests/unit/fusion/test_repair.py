"""BatchNorm statistics after fusing: measured at the sites, pooled as if all images were in one place."""

import pytest
import timm
import torch
from torch import nn

import popmi_core.models  # noqa: F401  (registers the presets)
from popmi_core.adapters import attach
from popmi_core.errors import DataError, UpdateError
from popmi_core.fusion.repair import norm_statistics, pool_norm_statistics, with_norm_statistics


def images(count=12, seed=0, shift=0.0):
    return shift + torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(180, 4), nn.BatchNorm1d(4), nn.LayerNorm(4),
    ).double().train()  # fmt: skip


def clone(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def one_pass(model, batch):
    """Running statistics as PyTorch itself finds them in one cumulative pass over everything."""
    twin = net()
    twin.load_state_dict(model.state_dict())
    for module in twin.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    twin.train()(batch)
    return {name: tensor for name, tensor in twin.state_dict().items() if "running" in name}


def test_one_batch_gives_what_pytorch_keeps():
    model, batch = net(), images()

    state = with_norm_statistics(model.state_dict(), norm_statistics(model, batch, batch_size=12))

    for name, expected in one_pass(model, batch).items():
        torch.testing.assert_close(state[name], expected, rtol=1e-12, atol=1e-13)


def test_between_regular_fields_the_channels_of_a_field_share_what_is_measured():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = attach(timm.create_model("popmi_resnet20", num_classes=5), group="C4", fields="regular").double()
        images = torch.randn(6, 3, 9, 9, dtype=torch.float64)
    found = with_norm_statistics(model.state_dict(), norm_statistics(model, images, batch_size=6))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches, of which there is one
            module.reset_running_stats()
    model.train()(images)
    for name, tensor in model.state_dict().items():
        if "running" in name:
            assert len(tensor) == len(found[name])
            torch.testing.assert_close(found[name], tensor)


def test_batches_and_sites_pool_to_one_pass_over_all_images():
    model, parts = net(), [images(8, 1), images(5, 2, shift=3.0), images(2, 3, shift=-50.0)]

    pooled = pool_norm_statistics([norm_statistics(model, part, batch_size=3) for part in parts])

    expected = one_pass(model, torch.cat(parts))
    state = with_norm_statistics(model.state_dict(), pooled)
    # Only the first layer sees inputs that no batch statistics have touched: there the pooling is exact.
    torch.testing.assert_close(state["0.running_mean"], expected["0.running_mean"], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(state["0.running_var"], expected["0.running_var"], rtol=1e-12, atol=1e-13)
    assert float(pooled["0.count"]) == 15 * 64


def test_pooling_is_the_law_of_total_variance():
    parts = [torch.randn(n, 2, generator=torch.Generator().manual_seed(n)).double() * n + n for n in (3, 10, 40)]
    told = [{"n.mean": p.mean(0), "n.var": p.var(0, correction=0), "n.count": torch.tensor(len(p))} for p in parts]

    pooled = pool_norm_statistics(told)

    together = torch.cat(parts)
    torch.testing.assert_close(pooled["n.mean"], together.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(pooled["n.var"], together.var(0, correction=0), rtol=1e-12, atol=0)


def test_shares_replace_counts_where_sites_sampled():
    told = [
        {"n.mean": torch.tensor([float(k)]), "n.var": torch.tensor([0.0]), "n.count": torch.tensor(100)}
        for k in range(2)
    ]

    pooled = pool_norm_statistics(told, shares=[1, 3])

    assert float(pooled["n.mean"]) == 0.75
    assert float(pooled["n.var"]) == pytest.approx(0.1875, abs=1e-15)


def test_measuring_leaves_the_model_as_it_was():
    model = net()
    model[0].eval()
    before = clone(model)

    norm_statistics(model, images())

    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [module.training for module in model] == [False] + [True] * 8
    assert all(not module._forward_pre_hooks for module in model)
    assert model[0].track_running_stats


def test_a_failing_model_is_put_back_too():
    model = net()

    with pytest.raises(RuntimeError):
        norm_statistics(model, images()[:, :2])

    assert model[2].track_running_stats
    assert model[4].training
    assert not model[0]._forward_pre_hooks


def test_no_batch_is_left_with_a_single_image():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3)).double()

    # Five images by four: PyTorch refuses to norm a batch of one value.
    assert float(norm_statistics(model, images(5), batch_size=4)["1.count"]) == 5


def test_a_large_mean_does_not_cancel_the_variance():
    model = nn.Sequential(nn.BatchNorm2d(3)).double()

    told = norm_statistics(model, images(8, shift=1e7), batch_size=2)

    # A mean of 1e7 leaves 1e-9 of a float64 number; its square would leave nothing.
    torch.testing.assert_close(
        told["0.var"], images(8).transpose(0, 1).flatten(1).var(1, correction=0), rtol=1e-7, atol=0
    )


def test_statistics_of_a_fused_model_restore_its_scale():
    """Averaging two unrelated nets shrinks activations; measured statistics norm them again."""
    first, second = net(), net()
    torch.manual_seed(1)
    for module in second:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    batch = images(64)
    fused = {n: (a + b) / 2 if a.is_floating_point() else a for (n, a), b in zip(
        first.state_dict().items(), second.state_dict().values(), strict=True)}  # fmt: skip
    model = net()
    model.load_state_dict(fused)

    model.load_state_dict(with_norm_statistics(fused, norm_statistics(model, batch, batch_size=64)))

    seen = model.eval()[:3](batch).transpose(0, 1).flatten(1)
    # The net's epsilon 1e-5 and the unbiased variance of 2304 positions.
    torch.testing.assert_close(seen.var(1), torch.ones(5, dtype=torch.float64), rtol=1e-3, atol=0)


def test_a_model_without_batch_norm_has_none():
    assert norm_statistics(nn.Sequential(nn.Conv2d(3, 2, 1), nn.GroupNorm(1, 2)), images().float()) == {}


def test_one_image_is_refused():
    with pytest.raises(DataError, match="norm_statistics: got 1 images, expected at least 2"):
        norm_statistics(net(), images(1))


TOLD = {"n.mean": torch.zeros(2), "n.var": torch.ones(2), "n.count": torch.tensor(3)}


@pytest.mark.parametrize(("told", "shares"), [([], None), ([TOLD], [0.5, 0.5])])
def test_no_answer_or_a_missing_share_is_refused(told, shares):
    with pytest.raises(UpdateError, match=r"norm statistics: \d answers and \d shares, expected at least one"):
        pool_norm_statistics(told, shares=shares)


@pytest.mark.parametrize("shares", [[0.0], [-1.0]])
def test_weights_that_weigh_nothing_are_refused(shares):
    with pytest.raises(UpdateError, match="norm statistics: 'n' has weights"):
        pool_norm_statistics([TOLD], shares=shares)


def test_a_layer_that_one_site_left_out_is_named():
    with pytest.raises(UpdateError, match=r"norm statistics: 'm.mean' is not in all sites' answers"):
        pool_norm_statistics([TOLD, {**TOLD, "m.mean": torch.zeros(2)}])


@pytest.mark.parametrize(
    "wrong", [{"n.mean": torch.zeros(3)}, {"n.var": torch.tensor([1.0, -1])}, {"n.mean": torch.tensor([0, torch.nan])}]
)
def test_answers_of_another_shape_or_without_sense_are_refused(wrong):
    with pytest.raises(UpdateError, match="norm statistics: answer 1 has at 'n"):
        pool_norm_statistics([TOLD, {**TOLD, **wrong}])


def test_statistics_of_another_model_are_refused():
    with pytest.raises(UpdateError, match=r"norm statistics: the model has no such tensor at 'n.running_mean'"):
        with_norm_statistics(net().state_dict(), TOLD)

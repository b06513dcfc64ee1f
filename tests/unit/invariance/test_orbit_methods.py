"""Every method over an orbit: exact where it says so, on every kind of backbone, and equal to its formula."""

import pytest
import torch
from orbit_backbones import BACKBONES, ORBIT_METHODS, context, noise, shaken
from torch.nn import functional

import popmi_core.models  # noqa: F401  (registers the small ViTs)
from popmi_core.groups import act, image_action, orbit, point_group
from popmi_core.groups.permutations import ChannelAction, TokenAction, generated
from popmi_core.invariance.build import build_method
from popmi_core.invariance.equiattention import EquiAttention
from popmi_core.invariance.equitune import Equitune
from popmi_core.invariance.equizero import Equizero
from popmi_core.invariance.lambda_equitune import LambdaEquitune
from popmi_core.invariance.orbit import Parts
from popmi_core.invariance.posthoc import PostHoc, embed

WHOLE = ("vit", "vit with class token")
# One for every place where a backbone is cut: the others of its kind take the same path.
PER_CUT = ("equitune-features", "lambda-equitune", "equitune-logits", "posthoc-mean", "posthoc-attention")
CASES = [(name, backbone) for backbone in BACKBONES for name in (PER_CUT if backbone not in WHOLE else ORBIT_METHODS)]
# Float64 keeps 16 digits; the sums over a network cost two or three, a logarithm one more.
ROUNDING = 1e-11


def built(name, backbone="vit", group="C4", **changes):
    return shaken(build_method(name, context(backbone, group, **changes))).eval()


@pytest.mark.parametrize(("name", "backbone"), CASES)
def test_a_turned_image_gets_the_same_logits(name, backbone):
    model, x = built(name, backbone, "D4"), noise(BACKBONES[backbone][1])
    with torch.no_grad():
        logits = model(x)
        # The generators of D4 stand for all of it.
        for element in point_group("D4").generators:
            torch.testing.assert_close(model(act(element, x)), logits, rtol=0, atol=ROUNDING * float(logits.std()))
        assert logits.std(dim=0).min() > 1e-6  # it does look at the image


@pytest.mark.parametrize("name", ORBIT_METHODS)
def test_sixteen_rotations_are_exact_for_quarter_turns_and_only_for_them(name):
    model, x = built(name, group="C16"), noise(count=2)
    with torch.no_grad():
        logits = model(x)
        torch.testing.assert_close(model(torch.rot90(x, 1, (-2, -1))), logits, rtol=0, atol=1e-9)
        assert (model(model.action.act(1, x)) - logits).abs().max() > 1e-6


@pytest.mark.parametrize("name", [name for name in ORBIT_METHODS if name != "tta"])
def test_it_is_exact_while_it_trains(name):
    model, x = built(name, "vit with class token").train(), noise()
    torch.testing.assert_close(model(torch.rot90(x, 1, (-2, -1))), model(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ORBIT_METHODS)
def test_the_plain_backbone_is_not_invariant(name):
    model, x = built(name), noise()
    change = model.backbone(torch.rot90(x, 1, (-2, -1))) - model.backbone(x)
    assert change.abs().max() > 1e-3  # otherwise the tests above would show nothing


@pytest.mark.parametrize("name", ORBIT_METHODS)
def test_under_the_trivial_group_nothing_but_the_backbone_is_left(name):
    model, x = build_method(name, context(group="C1")), noise()
    outputs, plain = model(x), model.backbone(x)
    if name in ("posthoc-most-probable", "posthoc-most-certain", "tta"):
        plain = plain.log_softmax(dim=-1)
    torch.testing.assert_close(outputs, plain)


# The formulas of the docstrings, word by word, on ViTs with class token and two registers.
PREFIX, SIDE = 3, 4
with_prefix = pytest.mark.parametrize("backbone", ["vit with class token", "vit with max pool"])


def turned_maps(model, x):
    """Return g^-1 h_g as maps, the tokens without a place and the keys, one list entry an element."""
    maps, free, keys = [], [], []
    for turns in range(4):
        tokens = model.backbone.forward_features(torch.rot90(x, turns, (2, 3)))
        grid = tokens[:, PREFIX:].reshape(len(x), SIDE, SIDE, -1)
        maps.append(torch.rot90(grid, -turns, (1, 2)))
        free.append(tokens[:, :PREFIX])
        keys.append(grid.mean(dim=(1, 2)))
    return maps, free, keys


def finish(model, grid, free):
    return model.backbone.forward_head(torch.cat([free, grid.flatten(1, 2)], dim=1))


@with_prefix
def test_equitune_on_features_is_its_formula(backbone):
    model, x = built("equitune-features", backbone), noise()
    maps, free, _ = turned_maps(model, x)
    torch.testing.assert_close(model(x), finish(model, sum(maps) / 4, sum(free) / 4))


def test_equitune_on_logits_is_its_formula():
    model, x = built("equitune-logits", "resnet"), noise(34)
    expected = sum(model.backbone(torch.rot90(x, turns, (2, 3))) for turns in range(4)) / 4
    torch.testing.assert_close(model(x), expected)


def test_the_inverse_action_matters_where_the_head_sees_places():
    model, x = built("equitune-features", "vit with max pool"), noise()
    maps, free, _ = turned_maps(model, x)
    as_they_come = [torch.rot90(grid, turns, (1, 2)) for turns, grid in enumerate(maps)]
    assert (finish(model, sum(as_they_come) / 4, sum(free) / 4) - model(x)).abs().max() > 1e-3


@with_prefix
def test_lambda_equitune_is_its_formula(backbone):
    model, x = built("lambda-equitune", backbone), noise()
    maps, free, keys = turned_maps(model, x)
    weights = [model.score(key).exp() for key in keys]
    assert max(w.max() for w in weights) > 1.01 * min(w.min() for w in weights)  # they differ
    grid = (
        sum(w[:, None, None, None] * m for w, m in zip(weights, maps, strict=True)) / sum(weights)[:, None, None, None]
    )
    rest = sum(w[:, None, None] * f for w, f in zip(weights, free, strict=True)) / sum(weights)[:, None, None]
    torch.testing.assert_close(model(x), finish(model, grid, rest))


@with_prefix
def test_equiattention_is_its_formula(backbone):
    model, x = built("equiattention", backbone), noise()
    maps, free, keys = turned_maps(model, x)
    grid, rest = torch.zeros_like(maps[0]), torch.zeros_like(free[0])
    for i in range(4):
        scores = [(model.query(keys[i]) * model.key(keys[j])).sum(dim=1) / 32**0.5 for j in range(4)]
        attention = torch.stack(scores).softmax(dim=0)
        for j in range(4):
            grid = grid + attention[j][:, None, None, None] * maps[j] / 4
            rest = rest + attention[j][:, None, None] * free[j] / 4
    torch.testing.assert_close(model(x), finish(model, grid, rest))


@pytest.mark.parametrize("proxy", ["logit", "confidence", "entropy"])
def test_equizero_takes_the_copy_with_the_best_score(proxy):
    backbone = built("equitune-logits").backbone
    model, x = Equizero(backbone, image_action("C4"), proxy=proxy), noise(count=6)
    copies = [model.backbone(torch.rot90(x, turns, (2, 3))) for turns in range(4)]
    copies = [copy.detach() for copy in copies]
    for i, logits in enumerate(model(x)):
        probabilities = [copy[i].softmax(dim=0) for copy in copies]
        score = {
            "logit": [float(copy[i].max()) for copy in copies],
            "confidence": [float(p.max()) for p in probabilities],
            "entropy": [float((p * p.log()).sum()) for p in probabilities],
        }[proxy]
        torch.testing.assert_close(logits, copies[score.index(max(score))][i])


def posthoc_by_hand(way, model, x):
    head = model.backbone.head
    z = [embed(model.backbone, torch.rot90(x, turns, (2, 3))) for turns in range(4)]
    p = [functional.softmax(head(one), dim=1) for one in z]
    if way == "mean":
        return head(sum(z) / 4)
    if way == "max":
        return head(torch.stack(z).max(dim=0).values)
    if way == "sum":
        return head(sum(z))
    if way == "most-probable":
        return (p[0] * p[1] * p[2] * p[3]).log()
    if way == "most-certain":
        return torch.stack(p).max(dim=0).values.log()
    weights = [model.merge.score(one).exp()[:, None] for one in z]
    return head(sum(w * one for w, one in zip(weights, z, strict=True)) / sum(weights))


@pytest.mark.parametrize("way", ["mean", "max", "sum", "most-probable", "most-certain", "score"])
def test_a_posthoc_aggregation_is_its_formula(way):
    model, x = built(f"posthoc-{way}"), noise()
    torch.testing.assert_close(model(x), posthoc_by_hand(way, model, x))


def test_test_time_augmentation_is_the_mean_of_probabilities():
    model, x = built("tta", group="C8"), noise()
    expected = sum(model.backbone(model.action.act(i, x)).softmax(dim=1) for i in range(8)) / 8
    torch.testing.assert_close(model(x).softmax(dim=1), expected)
    torch.testing.assert_close(model(x).exp(), expected)
    torch.testing.assert_close(model.train()(x), model.backbone(x))


@pytest.mark.parametrize("name", ["lambda-equitune", "equiattention"])
def test_untrained_weights_are_those_of_equitune(name):
    x = noise()
    plain = build_method("equitune-features", context("vit with class token"))
    torch.testing.assert_close(build_method(name, context("vit with class token"))(x), plain(x))


@pytest.mark.parametrize("name", ["posthoc-score", "posthoc-attention"])
def test_untrained_learned_aggregations_are_the_mean(name):
    x = noise()
    torch.testing.assert_close(build_method(name, context())(x), build_method("posthoc-mean", context())(x))


def test_behind_a_mean_and_a_linear_head_three_rivals_are_one_function():
    x = noise()
    one, two, three = (
        build_method(name, context())(x) for name in ("equitune-features", "equitune-logits", "posthoc-mean")
    )
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(three, two)


def test_most_probable_decides_as_the_mean_of_logits():
    x = noise(count=12)
    mean, probable = (built(name)(x) for name in ("equitune-logits", "posthoc-most-probable"))
    assert len(set(mean.argmax(dim=1).tolist())) > 1  # otherwise agreeing would show nothing
    assert torch.equal(probable.argmax(dim=1), mean.argmax(dim=1))
    # |G| times as large, up to what all classes of an image share.
    apart = probable - 4 * mean
    torch.testing.assert_close(apart, apart.mean(dim=1, keepdim=True).expand_as(apart))


def test_behind_a_class_token_features_and_logits_differ():
    model, x = built("equitune-features", "convnext"), noise(40)
    logits = Equitune(model.backbone, model.action).eval()(x)
    assert (model(x) - logits).abs().max() > 1e-4  # ConvNeXt has a norm between pooling and head


@pytest.mark.parametrize("name", ["lambda-equitune", "equiattention"])
def test_shares_follow_a_permuted_orbit_and_sum_to_one(name):
    model = built(name)
    keys, order = noise(size=8, count=4, channels=8)[:, :, :4].flatten(2), torch.tensor([2, 0, 3, 1])
    assert keys.shape == (4, 8, 32)
    shares = model.shares(keys)
    torch.testing.assert_close(model.shares(keys[order]), shares[order])
    torch.testing.assert_close(shares.sum(dim=0), torch.ones(8, dtype=torch.float64))
    assert (shares > 0).all()
    assert shares.std(dim=0).min() > 0


@pytest.mark.parametrize("name", ["posthoc-score", "posthoc-attention"])
def test_learned_aggregations_do_not_see_the_order_of_the_copies(name):
    model, order = built(name), torch.tensor([2, 0, 3, 1])
    z = noise(size=8, count=4, channels=8)[:, :, :4].flatten(2)
    torch.testing.assert_close(model.merge(z[order]), model.merge(z))


def test_attention_is_not_just_the_mean_once_trained():
    model = built("posthoc-attention")
    z = noise(size=8, count=4, channels=8)[:, :, :4].flatten(2)
    assert (model.merge(z) - z.mean(dim=0)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ORBIT_METHODS)
def test_gradients_reach_the_backbone_and_what_the_method_adds(name):
    model, x = built(name).train(), noise()
    functional.cross_entropy(model(x), torch.tensor([0, 1, 2])).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        # A bias that all copies share shifts all their scores alike: softmax does not see it.
        if parameter_name != "key.bias":
            assert parameter.grad.abs().max() > 0, parameter_name


def test_methods_serve_other_groups_such_as_permuted_colours():
    colours = ChannelAction(generated([(1, 0, 2), (1, 2, 0)]), "colours")
    backbone = built("equitune-logits").backbone
    for model in (Equitune(backbone, colours), Equizero(backbone, colours), PostHoc(backbone, colours, "max")):
        x = noise()
        torch.testing.assert_close(model(x[:, [2, 0, 1]]), model(x))
        assert len(orbit(colours, x)) == 6 * len(x)


class NextWord(torch.nn.Module):
    """Texts [n, words] -> scores of the word that follows [n, vocabulary]."""

    def __init__(self, vocabulary):
        super().__init__()
        self.embed = torch.nn.Embedding(vocabulary, 8)
        self.hidden = torch.nn.Linear(8, 8)
        self.out = torch.nn.Linear(8, vocabulary)

    def features(self, texts):
        return torch.tanh(self.hidden(self.embed(texts).cumsum(dim=1)[:, -1]))

    def forward(self, texts):
        return self.out(self.features(texts))


class WordStages:
    """Scores over words are what the group moves; the hidden layer says how much a copy counts."""

    def front(self, model, inputs):
        hidden = model.features(inputs)
        return Parts(model.out(hidden), None, hidden)

    def back(self, model, placed, free):
        return placed

    def width(self, model):
        return model.out.in_features


def test_methods_serve_texts_under_swapped_words():
    words = TokenAction.swapping(("the", "he", "she", "his", "her", "doctor"), [("he", "she"), ("his", "her")])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = NextWord(6).double()
    texts = torch.tensor([[0, 1, 5, 3], [2, 0, 4, 5]])
    models = (
        Equitune(plain, words, outputs=words),
        Equizero(plain, words, outputs=words),
        LambdaEquitune(plain, words, stages=WordStages()),
        EquiAttention(plain, words, stages=WordStages()),
    )
    for model in (*models[:2], *map(shaken, models[2:])):
        scores, swapped = model(texts), model(words.act(1, texts))
        # Equivariant: the scores are swapped with the words, they do not stay as they are.
        torch.testing.assert_close(swapped, words.act(1, scores))
        assert (swapped - scores).abs().max() > 1e-3

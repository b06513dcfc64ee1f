"""Where the descent begins, and that under a judge a start may also be the end."""

import torch

from popmi_core.matching import Matcher, describe_model
from popmi_core.matching.elements import Element, Move


def clone(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def started(small_vit):
    model = small_vit()
    symmetry, reference, other = describe_model(model), clone(model), clone(small_vit(seed=1))
    # An order that weights do not call for.
    order = torch.randperm(128, generator=torch.Generator().manual_seed(5))
    return Matcher(reference, symmetry), other, Element({"blocks.0.mlp": Move(order)})


def test_a_judge_may_prefer_a_start_to_where_the_descent_leads(small_vit):
    matcher, other, start = started(small_vit)
    tried = []

    def judge(moved):
        tried.append(moved)
        # The end at the start itself comes last.
        return -len(tried)

    found = matcher.match(other, starts=[start], judge=judge)

    assert torch.equal(found.element.moves["blocks.0.mlp"].perm, start.moves["blocks.0.mlp"].perm)
    assert len(tried) == 4


def test_without_a_judge_the_closest_end_is_taken(small_vit):
    matcher, other, start = started(small_vit)

    alone, found = matcher.match(other), matcher.match(other, starts=[start])

    assert found.distances[-1] <= alone.distances[-1]


def test_under_a_judge_the_function_stays(small_vit, outputs):
    matcher, other, start = started(small_vit)
    model = small_vit(seed=1)

    found = matcher.match(other, starts=[start], judge=lambda moved: float(moved["head.weight"].norm()))

    # Float64 rounding through some dozen matrix products.
    torch.testing.assert_close(outputs(model, found.state), outputs(model, other), rtol=1e-10, atol=1e-11)

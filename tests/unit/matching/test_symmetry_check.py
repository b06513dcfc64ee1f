"""A description is put to the test on the model it describes."""

import pytest
import torch
from torch import nn

from popmi_core.errors import ModelError
from popmi_core.matching import Builder, describe_model, verify_symmetry
from popmi_core.matching.families import describe


def test_the_model_is_left_as_it_was(small_vit):
    model = small_vit().float().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    describe_model(model)

    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_wrong_number_of_heads_is_caught(small_vit):
    model = small_vit()
    for block in model.blocks:
        block.attn.num_heads, block.attn.head_dim = 4, 8
    wrong = describe(model)
    for block in model.blocks:
        block.attn.num_heads, block.attn.head_dim = 2, 16

    assert not verify_symmetry(model, wrong)


def test_a_rotation_under_max_pooling_is_caught(small_vit):
    # The same tensors, pooled by their maximum.
    model = small_vit(global_pool="avg", fc_norm=False)
    rotating = describe(model)
    assert verify_symmetry(model, rotating)

    model.global_pool = "max"

    assert not verify_symmetry(model, rotating)


def test_a_reader_from_outside_is_named(small_vit):
    model = small_vit()
    # Reads one MLP's hidden units in their order, with weights that are no parameter.
    weights = torch.randn(128, dtype=torch.float64)
    model.blocks[1].mlp.act.register_forward_hook(lambda _, __, out: out * weights.to(out))

    with pytest.raises(ModelError, match=r"a random move of blocks.1.mlp changed the outputs.*Describe it by hand"):
        describe_model(model)


class Pair(nn.Module):
    """Two layers that no family knows."""

    def __init__(self, wide=6):
        super().__init__()
        self.first, self.second = nn.Linear(12, wide), nn.Linear(wide, 3)

    def forward(self, images):
        return self.second(self.first(images.flatten(1)).relu())


def describe_pair(model):
    build = Builder("pair", model.state_dict())
    build.space("hidden", "permutation", 6, rescalable=True)
    build.linear("first", writes="hidden")
    build.linear("second", reads="hidden")
    return build


def test_an_unknown_model_says_how_to_describe_it_by_hand():
    with pytest.raises(
        ModelError, match=r"Pair is of no described family .*class a method describe_symmetry\(self, build\), see docs"
    ):
        describe_model(Pair())


class Told(Pair):
    """The same, by its own word: ``describe_symmetry`` is what ``word`` says."""

    def __init__(self, word):
        super().__init__()
        self.word = word

    def describe_symmetry(self, build):
        self.word(build)


def right(build):
    build.space("hidden", "permutation", 6, rescalable=True)
    build.linear("first", writes="hidden")
    build.linear("second", reads="hidden")


def pixels_in_any_order(build):
    build.space("hidden", "permutation", 6, rescalable=True)
    build.space("pixels", "permutation", 12)
    build.linear("first", reads="pixels", writes="hidden")
    build.linear("second", reads="hidden")


def without_a_layer(build):
    build.space("hidden", "permutation", 6)
    build.linear("first", writes="hidden")


def too_wide(build):
    build.space("hidden", "permutation", 7)
    build.linear("first", writes="hidden")


def of_another_net(build):
    build.shape("third.weight")


def test_a_model_may_describe_itself():
    found = describe_model(Told(right), image_size=2)

    assert found.family == "Told.describe_symmetry"
    assert set(found.spaces) == {"hidden"}


def test_a_model_that_describes_itself_wrongly_is_refused_by_name():
    message = r"Told: a random move of pixels changed .*'Told.describe_symmetry' does not fit.* Correct Told.describe_s"
    with pytest.raises(ModelError, match=message):
        describe_model(Told(pixels_in_any_order), image_size=2)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (without_a_layer, r"Told.describe_symmetry: module 'second' is not described .*Correct Told.describe_symmetry"),
        (too_wide, r"Told.describe_symmetry: axis 0 of 'first.weight' .* Correct Told.describe_symmetry"),
        (of_another_net, r"Told.describe_symmetry: the state has no 'third.weight'.* Correct Told.describe_symmetry"),
    ],
)
def test_what_a_model_says_of_itself_is_corrected_where_it_says_so(word, message):
    with pytest.raises(ModelError, match=message):
        describe_model(Told(word), image_size=2)


def test_its_own_word_comes_before_the_familys(small_vit):
    model = small_vit()
    model.describe_symmetry = lambda build: build.still(*model.state_dict())

    assert dict(describe_model(model).spaces) == {}


def test_a_description_by_hand_stands_the_test():
    model = Pair()

    assert verify_symmetry(model, describe_pair(model).done(), image_size=2)


def test_a_wrong_description_by_hand_fails_the_test():
    model = Pair()
    build = Builder("pair", model.state_dict())
    build.space("hidden", "permutation", 6)
    build.linear("first", writes="hidden")
    build.still("second.weight", "second.bias")

    assert not verify_symmetry(model, build.done(), image_size=2)


def test_without_an_image_size_nothing_can_be_tested():
    model = Pair()

    with pytest.raises(ModelError, match=r"Pair does not say which image size it takes. Pass image_size"):
        verify_symmetry(model, describe_pair(model).done())


def test_a_forgotten_module_is_named():
    build = Builder("pair", Pair().state_dict())
    build.space("hidden", "permutation", 6)
    build.linear("first", writes="hidden")

    with pytest.raises(ModelError, match=r"module 'second' is not described \(its tensor 'second.bias', 2 such"):
        build.done()


def test_sizes_that_do_not_fit_are_told():
    build = Builder("pair", Pair(wide=8).state_dict())
    build.space("hidden", "permutation", 6)

    with pytest.raises(ModelError, match=r"axis 0 of 'first.weight' \(8, 12\) has 8 entries there, expected"):
        build.linear("first", writes="hidden")


def test_an_undeclared_space_is_told():
    build = Builder("pair", Pair().state_dict())

    with pytest.raises(ModelError, match=r"space 'hidden' of 'first.weight' is not declared. Call space\(\) first"):
        build.linear("first", writes="hidden")


def test_one_name_for_two_spaces_is_refused():
    build = Builder("pair", Pair().state_dict())
    build.space("hidden", "permutation", 6)

    with pytest.raises(ModelError, match="space 'hidden' is declared twice"):
        build.space("hidden", "permutation", 7)


def test_a_space_without_an_axis_is_refused():
    build = Builder("pair", Pair().state_dict())
    build.space("hidden", "permutation", 6)

    with pytest.raises(ModelError, match="space 'hidden' has no axis"):
        build.done()


def test_a_tensor_that_is_not_there_is_named():
    build = Builder("pair", Pair().state_dict())

    with pytest.raises(ModelError, match=r"the state has no 'third.weight', which the description expects"):
        build.shape("third.weight")


def test_a_subgroup_leaves_spaces_out_and_says_why(small_vit):
    whole = describe(small_vit())

    smaller = whole.without({"blocks.1.heads"}, "tested")

    assert set(whole.spaces) - set(smaller.spaces) == {"blocks.1.heads"}
    assert smaller.notes == ("blocks.1.heads fixed: tested",)
    assert not any(axis.space == "blocks.1.heads" for axis in smaller.axes)


def test_only_permutations_turn_no_basis(small_vit):
    found = describe(small_vit()).permutations_only()

    assert {space.kind for space in found.spaces.values()} == {"permutation", "heads"}
    assert {kind for space in found.spaces.values() for kind in space.maps.values()} == {"fixed"}
    assert verify_symmetry(small_vit(), found)

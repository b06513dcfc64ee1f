"""OPM and its soups: models of one function in different bases fuse to that function."""

import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from popmi_core.errors import ConfigError, ModelError, UpdateError
from popmi_core.fusion import Score, Update, fuse, needs
from popmi_core.fusion.grams import input_grams
from popmi_core.fusion.opm import Basis, Search, medoid
from popmi_core.matching import describe_model, match, random_element
from popmi_core.matching.elements import apply
from popmi_core.matching.starts import start_from
from popmi_core.matching.statistics import cross_statistics

RULES = ["opm", "opm_soup", "opm_greedy_soup", "opm_regmean"]
ANCHORS = ["reference", "medoid", "mean_of_others"]
# Float64 passes through equal functions: matching, singular values and Gram matrices of few images cost digits.
CLOSE = {"rtol": 1e-6, "atol": 1e-7}


def clone(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def drift(state, share, seed):
    source = torch.Generator().manual_seed(seed)
    return {n: t + share * torch.randn(t.shape, generator=source, dtype=t.dtype) for n, t in state.items()}


def scatter(states, symmetry):
    """Every model in a basis of its own, as if trained from its own start."""
    moved = [
        apply(s, symmetry, random_element(symmetry, torch.Generator().manual_seed(k))) for k, s in enumerate(states)
    ]
    return [Update(f"site_{k}", state, 10 + k) for k, state in enumerate(moved)]


@pytest.fixture
def images():
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@pytest.fixture
def call(small_vit, images, outputs):
    """Fuse with everything that any of the rules needs: losses against a target, Gram matrices on the images."""
    model = small_vit(depth=1, embed_dim=16)
    target = outputs(model, clone(model))

    def scorer(name, state):
        return {"clinic": Score(8, float((outputs(model, dict(state)) - target).square().mean()))}

    def grams_of(site, state):
        model.load_state_dict(dict(state), strict=True)
        return input_grams(model, images)

    def run(rule, updates, **settings):
        given = {"grams_of": grams_of} if rule == "opm_regmean" else {}
        return fuse(rule, updates, scorer=scorer, **given, **settings)

    return run


@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("rule", RULES)
def test_one_function_in_three_bases_fuses_to_itself(small_vit, outputs, call, rule, anchor):
    model = small_vit(depth=1, embed_dim=16)
    symmetry, reference = describe_model(model), clone(model)
    expected = outputs(model, reference)
    updates = scatter([reference] * 3, symmetry)

    fused = call(rule, updates, reference=reference, symmetry=symmetry, anchor=anchor)

    torch.testing.assert_close(outputs(model, fused.state), expected, **CLOSE)
    plain = fuse("average", updates, reference=reference).state
    assert (outputs(model, plain) - expected).norm() > 0.2 * expected.norm()


@pytest.mark.parametrize("rule", ["opm", "opm_soup", "opm_greedy_soup", "opm_regmean"])
def test_scattered_models_fuse_as_well_as_models_of_one_basis(small_vit, outputs, call, rule):
    model = small_vit(depth=1, embed_dim=16)
    symmetry, reference = describe_model(model), clone(model)
    states = [drift(reference, 0.02, seed) for seed in range(3)]
    expected = outputs(model, reference)

    scattered = call(rule, scatter(states, symmetry), reference=reference, symmetry=symmetry).state
    together = call(rule, [Update(f"site_{k}", s, 10 + k) for k, s in enumerate(states)], reference=reference,
                    symmetry=symmetry).state  # fmt: skip

    errors = [float((outputs(model, state) - expected).norm()) for state in (scattered, together)]
    # Drift leaves the basis open by as much as itself: not the same model, but one as good.
    assert errors[0] < 1.3 * errors[1]


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_the_replies_does_not_change_a_bit(small_vit, call, rule):
    model = small_vit(depth=1, embed_dim=16).float()
    symmetry, reference = describe_model(model), clone(model)
    updates = scatter([drift(reference, 0.05, seed) for seed in range(3)], symmetry)

    one = call(rule, updates, reference=reference, symmetry=symmetry).state
    other = call(rule, updates[::-1], reference=reference, symmetry=symmetry).state

    assert all(torch.equal(one[name], other[name]) for name in reference)
    assert {tensor.dtype for tensor in one.values()} == {torch.float32}


@pytest.mark.parametrize("rule", RULES)
def test_a_lone_model_is_returned_bit_for_bit(small_vit, call, rule):
    model = small_vit(depth=1, embed_dim=16)
    symmetry, reference = describe_model(model), clone(model)
    updates = scatter([reference], symmetry)

    fused = call(rule, updates, reference=reference, symmetry=symmetry)

    assert all(torch.equal(fused.state[name], tensor) for name, tensor in updates[0].state.items())


@pytest.mark.parametrize("rule", RULES)
def test_models_that_share_a_basis_are_left_as_they_are(small_vit, call, rule):
    model = small_vit(depth=1, embed_dim=16)
    symmetry, reference = describe_model(model), clone(model)
    updates = [Update(f"site_{k}", drift(reference, 1e-3, k), 1) for k in range(2)]

    notes = call(rule, updates, reference=reference, symmetry=symmetry).notes

    assert notes["match.site_0"].startswith("nothing moved")


def test_what_moved_is_noted(small_vit):
    model = small_vit(depth=1, embed_dim=16)
    symmetry, reference = describe_model(model), clone(model)

    notes = fuse("opm", scatter([reference] * 2, symmetry), reference=reference, symmetry=symmetry).notes

    # Heads, hidden units and the stream.
    assert notes["match.site_1"].startswith("moved 3 of 3 bases")


def test_what_moved_on_the_way_to_the_mean_of_the_others_is_noted(small_vit):
    """At the end all stay where they are, but they got there by a move."""
    model = small_vit(depth=1, embed_dim=16)
    symmetry, reference = describe_model(model), clone(model)
    updates = scatter([drift(reference, 0.1, seed) for seed in range(3)], symmetry)

    fused = fuse("opm", updates, reference=reference, symmetry=symmetry, anchor="mean_of_others")

    said = [fused.notes[f"match.site_{k}"] for k in range(3)]
    # The medoid may have been left as it is.
    assert sum(note.startswith("moved 3 of 3 bases") for note in said) >= 2


def test_the_fused_model_can_be_written_to_a_file(small_vit, call, tmp_path):
    """Moves along columns leave strides that files of weights refuse."""
    model = small_vit(depth=1, embed_dim=16)
    symmetry, reference = describe_model(model), clone(model)
    updates = scatter([drift(reference, 0.1, seed) for seed in range(2)], symmetry)

    for rule in (*RULES, "circuit", "average"):
        fused = call(rule, updates, reference=reference, symmetry=symmetry)
        save_file(fused.state, tmp_path / "fused.safetensors")
        read = load_file(tmp_path / "fused.safetensors")
        assert all(torch.equal(read[name], tensor) for name, tensor in fused.state.items()), rule
    # Matched alone, and a lone model: rules that put it into the reference's basis.
    save_file(match(updates[0].state, reference, symmetry).state, tmp_path / "matched.safetensors")
    for rule in ("git_rebasin", "fedma", "ot_fusion"):
        save_file(call(rule, updates[:1], reference=reference, symmetry=symmetry).state, tmp_path / "lone.safetensors")


def test_the_soup_holds_one_aligned_model_however_many_sites_answer(small_vit, monkeypatch):
    model = small_vit(depth=1, embed_dim=16)
    symmetry, reference = describe_model(model), clone(model)
    updates = scatter([reference] * 5, symmetry)
    made, alive = [], []
    matched = Search.match

    def watched(search, matcher, update):
        found = matched(search, matcher, update)
        made.append(weakref.ref(found.state["head.weight"]))
        alive.append(sum(one() is not None for one in made))
        return found

    monkeypatch.setattr(Search, "match", watched)
    fuse("opm_soup", updates, reference=reference, symmetry=symmetry)

    # The newest, and the one before it until its sum is done.
    assert len(alive) == 5
    assert max(alive) <= 2


def test_gram_matrices_of_an_unmoved_model_still_hold(small_vit, images):
    model = small_vit(depth=1, embed_dim=16)
    symmetry, reference = describe_model(model), clone(model)
    updates = [Update(f"site_{k}", drift(reference, 1e-3, k), 1, input_grams(model, images)) for k in range(2)]

    fused = fuse("opm_regmean", updates, reference=reference, symmetry=symmetry)

    plain = fuse("regmean", updates, reference=reference)
    assert all(torch.equal(fused.state[name], plain.state[name]) for name in reference)


def test_gram_matrices_of_a_moved_model_are_refused(small_vit, images):
    model = small_vit(depth=1, embed_dim=16)
    symmetry, reference = describe_model(model), clone(model)
    grams = input_grams(model, images)
    updates = [Update(u.site, u.state, 1, grams) for u in scatter([reference] * 2, symmetry)]

    with pytest.raises(UpdateError, match="site site_0: matching moved its model, so its Gram matrices are of another"):
        fuse("opm_regmean", updates, reference=reference, symmetry=symmetry)


def test_the_medoid_is_the_model_closest_to_the_others(small_vit):
    model = small_vit(depth=1, embed_dim=16)
    symmetry, reference = describe_model(model), clone(model)
    states = [drift(reference, share, seed) for seed, share in enumerate((0.2, 0.2, 0.01, 0.2))]

    assert medoid(scatter(states, symmetry), symmetry).site == "site_2"


def test_of_two_models_the_one_with_more_examples_is_the_medoid(small_vit):
    model = small_vit(depth=1, embed_dim=16)
    symmetry, reference = describe_model(model), clone(model)

    assert medoid(scatter([reference] * 2, symmetry), symmetry).site == "site_1"


def test_models_stay_within_reach_of_the_mean_of_the_others(small_vit):
    """Matching to the mean of the others never ends further apart than matching to the medoid."""
    model = small_vit(depth=1, embed_dim=16)
    symmetry, reference = describe_model(model), clone(model)
    updates = scatter([drift(reference, 0.1, seed) for seed in range(3)], symmetry)

    def spread(anchor):
        basis = Basis.choose(updates, reference=reference, symmetry=symmetry, anchor=anchor)
        states = [update.state for update in basis.aligned()]
        return sum(float(torch.stack([state[n] for state in states]).var(0).sum()) for n in reference)

    # Rounding; the cycles stop before a step that would not bring the models closer.
    assert spread("mean_of_others") <= 1.0001 * spread("medoid")


@pytest.mark.parametrize("rule", RULES)
def test_activations_may_say_where_to_begin(small_vit, outputs, images, call, rule):
    model = small_vit(depth=1, embed_dim=16)
    symmetry, reference = describe_model(model), clone(model)
    expected, asked = outputs(model, reference), []
    updates = scatter([reference] * 2, symmetry)
    states = {update.site: update.state for update in updates}

    def starts_of(site, basis):
        asked.append(site)
        return [start_from(cross_statistics(model, basis, states[site], symmetry, images), symmetry)]

    fused = call(rule, updates, reference=reference, symmetry=symmetry, starts_of=starts_of)

    torch.testing.assert_close(outputs(model, fused.state), expected, **CLOSE)
    assert asked == ["site_0", "site_1"]


def test_the_scorer_picks_among_the_starts_by_the_model_half_way(small_vit, outputs):
    model = small_vit(depth=1, embed_dim=16)
    symmetry, reference = describe_model(model), clone(model)
    other = clone(small_vit(1, depth=1, embed_dim=16))
    starts = [random_element(symmetry, torch.Generator().manual_seed(seed)) for seed in range(3)]
    seen = {}

    def scorer(name, state):
        # Any loss will do, as long as it is not the distance in weights.
        seen[name] = (float(outputs(model, state)[0, 0]), state["head.weight"].clone())
        return {"clinic": Score(1, seen[name][0])}

    basis = Basis.choose(
        [Update("a", other, 1), Update("b", reference, 1)],
        reference=reference,
        symmetry=symmetry,
        search=Search(starts_of=lambda site, _: starts if site == "a" else (), scorer=scorer),
    )
    found = next(basis.aligned()).state["head.weight"]

    best = min(seen, key=lambda name: seen[name][0])
    # Two places of the matcher's own, and three starts: where each leads, and as it is.
    assert sorted(seen) == [f"match/a/{k}" for k in range(8)]
    # Half way to the reference, in float64.
    torch.testing.assert_close(seen[best][1], (found + reference["head.weight"]) / 2, rtol=1e-12, atol=1e-12)


def test_an_anchor_that_does_not_exist_is_refused(small_vit):
    model = small_vit(depth=1, embed_dim=16)
    state = clone(model)

    with pytest.raises(ConfigError, match="opm: anchor is 'first', expected reference, medoid or mean_of_others"):
        fuse("opm", [Update("a", state, 1)], reference=state, symmetry=describe_model(model), anchor="first")


@pytest.mark.parametrize("rule", RULES)
def test_rules_that_match_say_that_they_need_the_symmetries(rule, reference, make_updates, scorer):
    assert needs(rule).symmetry
    assert needs(rule).matches
    with pytest.raises(ModelError, match=f"rule {rule} needs the architecture's symmetries but got none"):
        fuse(rule, make_updates(2), reference=reference, scorer=scorer)

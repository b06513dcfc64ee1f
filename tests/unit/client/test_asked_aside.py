"""What a site answers beside training and evaluation: candidates, norms, Gram matrices, kept parts, ensembles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.align import align
from client.app import app
from client.evaluate import Ensemble, judge_images
from client.kept import load_kept
from client.receive import receive_ensemble, split_kept
from client.reply import tensor_record
from client.statistics import refuse_bare_statistics, some_images
from client.train import held_still
from popmi_core.config import AdapterConfig, LocalConfig, MatchConfig, ModelConfig, PrivacyConfig
from popmi_core.data import DERMOSCOPY_CLASSES, ImageSet
from popmi_core.errors import DataError, PrivacyError, UpdateError
from popmi_core.matching import apply, describe_model, random_element
from popmi_core.matching.statistics import cross_statistics
from popmi_core.metrics.summary import MIN_CELL
from popmi_core.models import build_model, exchanged_state, predict
from popmi_core.protocol import (
    ACTIVATIONS,
    GRAMS,
    INSTRUCTION,
    JSON_KEY,
    MODEL,
    NORMS,
    REPORT,
    Instruction,
    Report,
    model_record,
)

SMALL = ModelConfig(backbone="popmi_vit_micro", image_size=16)
BUDGET = PrivacyConfig(target_epsilon=5.0, target_delta=1e-3)


@pytest.fixture(autouse=True)
def _identity():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def instruction(**changes) -> Instruction:
    described = {
        "run": "r",
        "server_round": 1,
        "rounds": 2,
        "seed": 0,
        "classes": DERMOSCOPY_CLASSES,
        "model": SMALL,
        "local": LocalConfig(batch_size=16),
        "phantom_images": 60,
    }
    return Instruction(**{**described, **changes})


def ask(kind: str, told: Instruction, arrays: dict) -> Message:
    message = Message(RecordDict({INSTRUCTION: ConfigRecord({JSON_KEY: told.model_dump_json()}), **arrays}), 7, kind)
    message.metadata.__dict__["_message_id"] = "m"
    return message


def start(seed: int = 0, config: ModelConfig = SMALL) -> dict[str, torch.Tensor]:
    return exchanged_state(build_model(config, len(DERMOSCOPY_CLASSES), seed=seed))


def answered(kind: str, folder, told: Instruction, **arrays) -> tuple[Message, Report]:
    config = {"site": "phantom_slide", "data": "phantom:phantom_slide", "state": str(folder)}
    context = Context(run_id=1, node_id=7, node_config=config, state=RecordDict(), run_config={})
    reply = app(ask(kind, told, arrays or {MODEL: tensor_record(start(config=told.model))}), context)
    return reply, Report.model_validate_json(reply.content.config_records[REPORT][JSON_KEY])


def images(count: int) -> ImageSet:
    rng = np.random.default_rng(0)
    return ImageSet(rng.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8), rng.integers(0, 7, count))


def test_a_candidate_is_judged_by_figures_alone(tmp_path):
    reply, report = answered("evaluate.judge", tmp_path, instruction(candidate="opm"))
    assert report.error is None
    assert set(report.metrics) == {"val.nll", "val.accuracy", "val.auroc", "val.num_examples"}
    assert report.num_examples == report.metrics["val.num_examples"]
    assert not reply.content.array_records


def test_of_too_few_validation_images_only_their_number_is_told():
    model = build_model(SMALL, 7, seed=0)
    assert judge_images(model, images(MIN_CELL - 1)) == {"num_examples": MIN_CELL - 1.0}
    assert set(judge_images(model, images(MIN_CELL))) == {"num_examples", "nll", "accuracy", "auroc"}


def test_norm_statistics_are_sums_by_layer(tmp_path):
    config = ModelConfig(backbone="popmi_resnet20", image_size=16)
    reply, report = answered("query.norms", tmp_path, instruction(model=config))
    assert report.error is None
    named = {name.rpartition(".")[2] for name in reply.content.array_records[NORMS]}
    assert named == {"mean", "var", "count"}


def test_gram_matrices_come_with_the_update_for_layers_that_travel_and_are_symmetric(tmp_path):
    told = instruction(statistics=("gram",), num_images=8, keep_local=("head",))
    reply, _ = answered("train", tmp_path, told)
    grams = reply.content.array_records[GRAMS].to_torch_state_dict()
    assert "blocks.0.mlp.fc1" in grams
    assert "head" not in grams
    assert all(gram.dtype == torch.float32 and torch.equal(gram, gram.T) for gram in grams.values())


def test_activation_statistics_compare_the_update_with_the_broadcast_model(tmp_path):
    reply, report = answered("train", tmp_path, instruction(statistics=("activations",), num_images=8))
    assert report.error is None
    assert all(array.numpy().dtype == np.float64 for array in reply.content.array_records[ACTIVATIONS].values())


def test_the_same_images_are_looked_at_again_and_never_more_than_asked_for():
    model, told = build_model(SMALL, 7, seed=0), instruction(num_images=6)
    (first, targets), (again, _) = (some_images(images(20), model, told, "a") for _ in range(2))
    assert first.shape == (6, 3, 16, 16)
    assert targets.shape == (6,)
    assert torch.equal(first, again)
    assert not torch.equal(first, some_images(images(20), model, told, "b")[0])


def test_sums_over_too_few_images_do_not_leave_the_site():
    with pytest.raises(DataError, match=f"site a: 4 training images, expected at least {MIN_CELL}"):
        some_images(images(4), build_model(SMALL, 7, seed=0), instruction(), "a")


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("train", {"statistics": ("gram",)}),
        ("train", {"statistics": ("activations",)}),
        ("train", {"match": MatchConfig(method="learned", where="site")}),
        ("train", {"match": MatchConfig(method="activations", where="site")}),
        ("query.norms", {}),
    ],
    ids=["gram", "activations sent", "learned", "activations", "norms"],
)
def test_a_site_with_a_budget_refuses_what_looks_past_the_noise_whatever_the_server_asks(tmp_path, kind, changes):
    reply, report = answered(kind, tmp_path, instruction(privacy=BUDGET, **changes))
    assert "privacy budget" in report.error
    assert not reply.content.array_records
    # Refused before anything was paid for.
    assert not list(tmp_path.glob("privacy-ledger*.json"))


def test_the_refusal_names_what_was_asked_for():
    refuse_bare_statistics(instruction(), "a Gram matrix")
    with pytest.raises(PrivacyError, match=r"^a Gram matrix would send"):
        refuse_bare_statistics(instruction(privacy=BUDGET), "a Gram matrix")


def test_weights_are_matched_at_the_site_and_told_by_space(tmp_path):
    told = instruction(match=MatchConfig(method="opm", where="site"))
    reply, report = answered("train", tmp_path, told)
    plain, _ = answered("train", tmp_path / "plain", instruction())
    assert report.gains.keys() == report.identity.keys()
    assert report.gains
    # From one start and after one epoch nothing has to move: the update is left bit-identical.
    if all(report.identity.values()):
        sent, bare = (item.content.array_records[MODEL] for item in (reply, plain))
        assert all((sent[name].numpy() == bare[name].numpy()).all() for name in sent)


def test_no_map_is_learned_where_the_update_shares_its_basis_with_what_was_broadcast():
    model, begun = build_model(SMALL, 7, seed=0), start(0)
    symmetry = describe_model(model)
    near = {name: tensor + 1e-3 * tensor.abs().mean() for name, tensor in begun.items()}
    moved = apply(near, symmetry, random_element(symmetry, generator=torch.Generator().manual_seed(0)))
    told = instruction(match=MatchConfig(method="learned", where="site", learn_steps=2))

    kin, other = (align(model, state, begun, images(40), told, "a") for state in (near, moved))

    assert kin is not None
    assert "learned" not in kin.note
    assert all(kin.identity.values())
    assert all(torch.equal(kin.state[name], tensor) for name, tensor in near.items())
    assert other is not None
    assert "learned: loss half way" in other.note


def test_noise_shows_the_way_where_a_site_has_no_image_to_look_at_or_a_budget():
    model, begun = build_model(SMALL, 7, seed=0), start(0)
    symmetry = describe_model(model)
    moved = apply(begun, symmetry, random_element(symmetry, generator=torch.Generator().manual_seed(0)))
    told = instruction(privacy=BUDGET, match=MatchConfig(method="probes", where="site"))

    found = align(model, moved, begun, images(1), told, "a")

    assert found is not None
    assert not any(found.identity.values())
    # float32: what a random element and its inverse leave.
    assert all(torch.allclose(found.state[name], tensor, atol=1e-4) for name, tensor in begun.items())


@pytest.mark.parametrize(("method", "broadcast", "looks"), [("opm", 0, 0), ("probes", 0, 1), ("probes", 1, 0)])
def test_the_models_are_run_on_noise_only_where_that_was_asked_for_and_bases_differ(
    method, broadcast, looks, monkeypatch
):
    seen: list[int] = []

    def counted(*arguments):
        seen.append(1)
        return cross_statistics(*arguments)

    monkeypatch.setattr("popmi_core.matching.probes.cross_statistics", counted)
    told = instruction(match=MatchConfig(method=method, where="site"))

    align(build_model(SMALL, 7, seed=0), start(1), start(broadcast), images(1), told, "a")

    assert len(seen) == looks


def test_kept_parts_stay_on_disk_and_are_taken_up_in_the_next_round(tmp_path):
    told = instruction(keep_local=("head",))
    reply, _ = answered("train", tmp_path, told)
    assert not any("head" in name for name in reply.content.array_records[MODEL])
    kept = load_kept(tmp_path, "personal", "r", before=2)
    assert set(kept) == {"head.weight", "head.bias"}
    before, after = answered("evaluate.judge", tmp_path, told), answered("evaluate.judge", tmp_path / "new", told)
    assert before[1].metrics["val.nll"] != after[1].metrics["val.nll"]
    answered("train", tmp_path, told.model_copy(update={"server_round": 2}))
    again = load_kept(tmp_path, "personal", "r", before=3)
    assert not torch.equal(again["head.weight"], kept["head.weight"])


def test_names_that_hold_a_pattern_stay():
    state = dict.fromkeys(("blocks.0.norm1.weight", "norm.bias", "head.weight", "fc"), torch.zeros(1))
    shared, own = split_kept(state, ("norm", "h?ad"))
    assert set(shared) == {"fc"}
    assert set(own) == {"blocks.0.norm1.weight", "norm.bias", "head.weight"}
    assert split_kept(state, ("blocks.*.weight",))[1].keys() == {"blocks.0.norm1.weight"}


def test_an_ensemble_answers_with_the_mean_of_its_members_probabilities(tmp_path):
    model, data = build_model(SMALL, 7, seed=0), images(6)
    states = [start(0), start(1)]
    together = predict(Ensemble(model, states), data.images)
    alone = [predict(build_model(SMALL, 7, seed=seed), data.images) for seed in (0, 1)]
    np.testing.assert_allclose(together, np.mean(alone, axis=0), atol=1e-7)  # float32 logits
    told = instruction(num_models=2)
    _, report = answered(
        "evaluate", tmp_path, told, **{model_record(n): tensor_record(s) for n, s in enumerate(states)}
    )
    assert report.metrics["val.nll"] > 0


def test_an_ensemble_with_a_member_missing_is_refused():
    told = instruction(num_models=2)
    with pytest.raises(UpdateError, match="holds no model 1 of 2"):
        receive_ensemble(ask("evaluate", told, {model_record(0): tensor_record(start())}), told)


def test_held_layers_do_not_move_and_can_move_again_afterwards():
    model = build_model(SMALL, 7, seed=0)
    with held_still(model, ("blocks.1", "head.bias")):
        still = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert still == {name for name, _ in model.named_parameters() if name.startswith("blocks.1.")} | {"head.bias"}
    assert all(p.requires_grad for p in model.parameters())


def test_where_not_every_layer_travels_the_site_says_that_it_looked_at_no_image(tmp_path):
    config = ModelConfig(
        backbone="popmi_vit_micro", image_size=16, adapter=AdapterConfig(group="C4", merge_block=1, train="adapter")
    )
    told = instruction(model=config, match=MatchConfig(method="activations", where="site", num_images=8))
    _, report = answered("train", tmp_path, told)
    assert report.error is None
    assert "images not looked at: not every layer travels" in report.match_note

"""The dry run: the real client app on the site's data, everything listed, nothing sent, nothing charged."""

from __future__ import annotations

import json

import pytest
from site_parts import make_home, make_kit
from typer.testing import CliRunner

from client.ledger import Ledger
from client.site.approval import Approvals
from client.site.commands import app
from client.site.dryrun import DryRun, as_text, dry_run, meaning
from popmi_core import __version__
from popmi_core.config import PrivacyConfig
from popmi_core.deployment import bundle_files, code_hash
from popmi_core.errors import SetupError
from popmi_core.models import build_model, exchanged_state
from popmi_core.protocol import MODEL


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[DryRun, object]:
    home = make_home(tmp_path_factory.mktemp("plain") / "site")
    return dry_run(home), home


def test_every_tensor_is_listed_with_shape_type_and_bytes(plain):
    result, home = plain
    kit = home.kit()
    expected = exchanged_state(build_model(kit.config.model, len(kit.classes), seed=0))
    train = next(step for step in result.steps if step.question == "train")
    listed = {item.name: item for item in train.tensors if item.record == MODEL}
    assert listed.keys() == expected.keys()
    assert all(listed[name].shape == tuple(tensor.shape) for name, tensor in expected.items())
    name = next(iter(expected))
    assert listed[name].dtype == "float32"
    assert listed[name].bytes == 4 * expected[name].numel()
    assert train.message_bytes > sum(item.bytes for item in train.tensors)


def test_the_three_questions_of_a_round_are_asked_and_their_figures_listed(plain):
    result, _ = plain
    assert [step.question for step in result.steps] == ["query", "train", "evaluate"]
    join, train, evaluate = result.steps
    assert join.tensors == ()
    assert join.figures["split_sizes"].keys() == {"train", "val", "test"}
    assert train.figures["metrics"].keys() == {"train.loss"}
    assert {item.record for item in evaluate.tensors} <= {"scores.val", "scores.test", "scores.train"}
    assert {item.dtype for item in evaluate.tensors} <= {"int64"}
    assert join.figures["class_table"].keys() == {"train", "val", "test"}
    assert join.figures["popmi"] == __version__
    assert evaluate.figures["confusion"].keys() == {"train", "val", "test"}
    assert len(evaluate.figures["turned"]["figures"]["flips"]) == 24
    assert evaluate.figures["turned"]["layers"]


def test_under_a_privacy_budget_no_training_image_is_counted_or_judged(tmp_path):
    budget = PrivacyConfig(target_epsilon=5.0, target_delta=1e-3)
    join, _, evaluate = dry_run(make_home(tmp_path / "site", make_kit(privacy=budget.model_dump()))).steps
    assert join.figures["class_table"].keys() == {"val", "test"}
    assert {item.record for item in evaluate.tensors} <= {"scores.val", "scores.test"}
    assert evaluate.figures["turned"]["num_images"] >= 5


def test_the_list_is_of_what_travels_as_one_block_and_weighs_what_travels(plain):
    result, _ = plain
    for step in result.steps:
        tensors, records = sum(item.bytes for item in step.tensors), len({item.record for item in step.tensors})
        # A block's header names every tensor; the report and Flower's own fields come on top.
        header = sum(len(item.name) + 100 for item in step.tensors)
        assert tensors < step.message_bytes < tensors + header + 1000 * records + 8000


def test_the_list_says_of_which_code_it_is(tmp_path):
    home = make_home(tmp_path / "site")
    result = dry_run(home)
    assert result.code == code_hash(bundle_files())
    assert "not approved here" in as_text(result)
    approvals = Approvals(home)
    approvals.approve(approvals.keep(bundle_files()))
    assert f"Code: {result.code[:12]}, this installation's (approved here)" in as_text(dry_run(home))


def test_nothing_is_left_in_the_site_and_nothing_stays_of_the_model(plain):
    result, home = plain
    assert not home.state.exists()
    assert result.stays == ()
    assert "Nothing was sent." in as_text(result)
    assert "Stays here (personal.keep_local): nothing of the model." in as_text(result)


def test_parts_kept_at_the_site_are_named_and_not_among_what_is_sent(tmp_path):
    home = make_home(tmp_path / "site", make_kit(personal={"keep_local": ["head"]}))
    result = dry_run(home)
    assert result.stays
    assert all("head" in name for name in result.stays)
    sent = {item.name for step in result.steps for item in step.tensors if item.record == MODEL}
    assert sent
    assert not any("head" in name for name in sent)
    assert "head" in as_text(result).split("Stays here")[1]


def test_control_variates_and_statistics_are_among_what_is_sent(tmp_path):
    kit = make_kit(
        local={"batch_size": 16, "objective": "control_variates"}, fuse={"rule": "regmean"}, match={"method": "none"}
    )
    result = dry_run(make_home(tmp_path / "site", kit))
    train = result.steps[1]
    assert {item.record for item in train.tensors} == {"model", "control_change", "grams"}
    assert "the mean gradient of the round" in as_text(result)


def test_what_is_asked_between_training_and_evaluation_is_listed_too(tmp_path):
    kit = make_kit(
        model={"backbone": "resnet10t", "image_size": 32}, fuse={"gate": ["average"], "repair": True}, rounds=1
    )
    result = dry_run(make_home(tmp_path / "site", kit))
    assert [step.question for step in result.steps] == ["query", "train", "evaluate.judge", "query.norms", "evaluate"]
    judged, norms = result.steps[2:4]
    assert judged.tensors == ()
    assert judged.figures["metrics"]
    assert {item.record for item in norms.tensors} == {"norms"}


@pytest.mark.parametrize("rule", ["best_single", "greedy_soup", "opm_greedy_soup"])
def test_candidates_are_listed_for_every_rule_that_chooses_without_a_gate(tmp_path, rule):
    result = dry_run(make_home(tmp_path / "site", make_kit(fuse={"rule": rule})))
    judged = next(step for step in result.steps if step.question == "evaluate.judge")
    assert judged.figures["metrics"].keys() == {"val.nll", "val.accuracy", "val.auroc", "val.num_examples"}
    assert "Answer to 'evaluate.judge', in every round, for every candidate that the rule or the gate compares" in (
        as_text(result)
    )


def test_what_nobody_fuses_is_neither_repaired_nor_judged(tmp_path):
    kit = make_kit(
        strategy="local",
        model={"backbone": "resnet10t", "image_size": 32},
        fuse={"rule": "regmean", "gate": ["average"], "repair": True},
    )
    result = dry_run(make_home(tmp_path / "site", kit))
    assert [step.question for step in result.steps] == ["query", "train", "evaluate"]
    assert {item.record for item in result.steps[1].tensors} == {"model"}


def test_the_sites_privacy_ledger_is_not_charged(tmp_path):
    budget = PrivacyConfig(target_epsilon=5.0, target_delta=1e-3)
    home = make_home(tmp_path / "site", make_kit(privacy=budget.model_dump()))
    home.state.mkdir()
    before = Ledger(home.state / "privacy-ledger.json", site="north").entries()
    result = dry_run(home)
    assert 0 < result.steps[1].figures["epsilon"] <= 5
    assert Ledger(home.state / "privacy-ledger.json", site="north").entries() == before
    assert list(home.state.iterdir()) == []


def test_data_that_cannot_be_used_end_it_with_the_question_and_the_reason(tmp_path):
    home = make_home(tmp_path / "site", data=str(tmp_path / "nothing"))
    with pytest.raises(SetupError, match="dry run, 'query': DataError: site north: there are no images"):
        dry_run(home)


def test_the_command_shows_writes_and_logs_the_list(tmp_path):
    home = make_home(tmp_path / "site")
    done = CliRunner().invoke(app, ["dry-run", "--out", str(tmp_path / "list.json"), "--home", str(home.folder)])
    assert done.exit_code == 0, done.output
    assert "--every or --out lists all" in done.stdout
    told = json.loads((tmp_path / "list.json").read_text())
    assert [step["question"] for step in told["steps"]] == ["query", "train", "evaluate"]
    entry = list(home.audit.entries())[-1]
    assert (entry.event, entry.details["bytes"]) == ("dry_run", DryRun.model_validate(told).bytes)


@pytest.mark.parametrize(
    ("record", "said"), [("scores.val", "counts only"), ("norms", "BatchNorm"), ("?", "docs/site.md")]
)
def test_records_are_explained(record, said):
    assert said in meaning(record)

"""Which site a node is, and what it reads."""

from __future__ import annotations

import pytest
from flwr.app import Context, RecordDict
from small_hospital import write_hospital

from client.load import assignment_of, read_data
from popmi_core.config import LocalConfig, ModelConfig
from popmi_core.data import DERMOSCOPY_CLASSES
from popmi_core.errors import ConfigError, DataError
from popmi_core.protocol import Assignment, Instruction


def instruction(**changes) -> Instruction:
    described = {
        "run": "r",
        "server_round": 1,
        "rounds": 1,
        "seed": 0,
        "classes": DERMOSCOPY_CLASSES,
        "model": ModelConfig(image_size=16),
        "local": LocalConfig(),
        "phantom_images": 40,
    }
    return Instruction(**{**described, **changes})


def node(**config) -> Context:
    return Context(run_id=1, node_id=7, node_config=config, state=RecordDict(), run_config={})


LINEUP = (Assignment(site="a", data=("phantom:a",), state="s/a"), Assignment(site="b", data=("x", "y"), state="s/b"))


def test_a_node_is_what_its_own_configuration_says_whatever_the_lineup():
    found = assignment_of(
        node(site="mine", data="/a\n/b", state="/s", **{"partition-id": 0}), instruction(lineup=LINEUP)
    )
    assert found == Assignment(site="mine", data=("/a", "/b"), state="/s")


def test_a_numbered_node_is_its_place_in_the_lineup():
    assert assignment_of(node(**{"partition-id": 1}), instruction(lineup=LINEUP)) == LINEUP[1]


@pytest.mark.parametrize("config", [{}, {"partition-id": 2}, {"partition-id": -1}])
def test_a_node_without_a_place_is_refused(config):
    with pytest.raises(ConfigError, match="neither a 'site' nor a place in the lineup"):
        assignment_of(node(**config), instruction(lineup=LINEUP))


def test_a_configured_node_without_data_is_refused():
    with pytest.raises(ConfigError, match="has no 'data'"):
        assignment_of(node(site="mine"), instruction())


def test_several_folders_become_one_site_with_all_their_images():
    specs = ("phantom:phantom_slide", "phantom:phantom_ruler")
    parts = [read_data(Assignment(site="p", data=(spec,), state="s"), instruction()) for spec in specs]
    pooled = read_data(Assignment(site="pooled", data=specs, state="s"), instruction())
    for split in ("train", "val", "test", "external"):
        assert len(getattr(pooled, split)) == sum(len(getattr(part, split)) for part in parts)
    assert pooled.phantom
    assert (pooled.train.images[: len(parts[0].train)] == parts[0].train.images).all()


def test_a_real_sites_words_become_the_runs_classes_in_the_runs_order(tmp_path):
    folder = write_hospital(tmp_path, lambda rows: [row.update(diagnosis="Naevus") for row in rows[1::2]])
    (tmp_path / "words.toml").write_text('naevus = "nv"\n')
    data = f"{folder}#labels={tmp_path / 'words.toml'}"
    found = read_data(Assignment(site="north", data=(data,), state="s"), instruction(classes=("nv", "bcc", "mel")))
    assert found.classes == ("nv", "bcc", "mel")
    assert found.train.targets.tolist() == [2, 0] * 12


def test_a_site_whose_images_are_all_external_is_refused_before_it_joins(tmp_path):
    folder = write_hospital(tmp_path, lambda rows: [row.update(split="external") for row in rows])
    with pytest.raises(DataError, match=r"site north: every usable image is of split external, which no site trains"):
        read_data(Assignment(site="north", data=(str(folder),), state="s"), instruction(classes=("nv", "bcc", "mel")))


def test_a_site_with_other_classes_than_the_run_is_refused():
    with pytest.raises(ConfigError, match=r"names 7 classes, which are not the run's in the run's order \(nv, mel\)"):
        read_data(Assignment(site="p", data=("phantom:phantom_slide",), state="s"), instruction(classes=("nv", "mel")))

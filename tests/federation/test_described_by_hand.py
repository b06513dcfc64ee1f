"""A model that no family knows and that describes itself, as docs/symmetries.md shows: from the page to a round."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from timm import create_model

from popmi_core.adapters.lora import add_lora
from popmi_core.errors import ModelError
from popmi_core.fusion import Update, fuse
from popmi_core.matching import apply, describe_model, random_element

PAGE = Path(__file__).parents[2] / "docs" / "symmetries.md"
TWO = ["phantom_polarised", "phantom_ruler"]


@pytest.fixture(scope="module")
def page() -> Iterator[ModuleType]:
    """What the page's example defines; it registers 'two_layers' with timm."""
    section = PAGE.read_text(encoding="utf-8").partition("## Describing a model by hand")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    # register_model looks its function's module up.
    module = sys.modules["page_of_symmetries"] = ModuleType("page_of_symmetries")
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    yield module
    del sys.modules["page_of_symmetries"]


def two_layers(seed=0):
    torch.manual_seed(seed)
    return create_model("two_layers", img_size=16, num_classes=5).double().eval()


def test_the_example_of_the_page_runs_and_stands_the_test(page):
    space = page.symmetry.spaces["hidden"]

    assert page.symmetry.family == "TwoLayers.describe_symmetry"
    assert (space.kind, space.size, space.rescalable) == ("permutation", 48, True)


def test_a_low_rank_adapter_is_described_on_top_of_it(page):
    found = describe_model(add_lora(two_layers(), ("fc2",), rank=3), image_size=16)

    assert set(found.spaces) == {"hidden", "fc2.lora"}
    assert {axis.tensor for axis in found.of("hidden")} == {
        "fc1.weight",
        "fc1.bias",
        "fc2.weight",
        "fc2.lora_A.weight",
    }


def test_opm_brings_moved_copies_back_before_it_averages(page):
    model = two_layers()
    reference = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    symmetry = describe_model(model, image_size=16)
    element = random_element(symmetry, torch.Generator().manual_seed(1))
    moved = apply(reference, symmetry, element)
    plain = fuse("average", [Update("a", reference, 1), Update("b", moved, 1)], reference=reference).state

    fused = fuse("opm", [Update("a", reference, 1), Update("b", moved, 1)], reference=reference, symmetry=symmetry)

    # Scales by which units differ are divided out again: rounding.
    assert max(float((fused.state[name] - reference[name]).abs().max()) for name in reference) < 1e-12
    assert float((plain["fc1.weight"] - reference["fc1.weight"]).abs().max()) > 0.01


def test_it_goes_through_a_round(page, federation):
    model = {"backbone": "two_layers", "image_size": 16}
    plan = federation.plan(rounds=1, sites=TWO, strategy="opm", model=model)

    federation.run(plan)

    with federation.read(plan) as reader:
        assert reader.run().status == "finished"
        assert {row.outcome for row in reader.sites(1)} == {"ok"}


def test_a_wrong_description_stops_the_run_before_any_site_trains(page, federation, monkeypatch):
    def forgetful(self, build):
        build.space("hidden", "permutation", self.fc1.out_features)
        build.linear("fc1", writes="hidden")
        build.still("norm.weight", "norm.bias", "fc2.weight", "fc2.bias")

    monkeypatch.setattr(page.TwoLayers, "describe_symmetry", forgetful)
    plan = federation.plan(rounds=1, sites=TWO, strategy="opm", model={"backbone": "two_layers", "image_size": 16})

    with pytest.raises(ModelError, match=r"TwoLayers: a random move of hidden changed the outputs.* Correct TwoLayers"):
        federation.run(plan)
    with federation.read(plan) as reader:
        assert reader.sites(1) == ()

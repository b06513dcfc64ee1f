"""Models that stay in files: the same fusion, with memory that does not grow with the sites."""

import tempfile
import weakref

import pytest
import torch

from popmi_core.checkpoints import FileState, open_state, save_state
from popmi_core.errors import RunError
from popmi_core.fusion import Score, Update, fuse
from popmi_core.fusion.opm import medoid
from popmi_core.fusion.shelf import Shelf, shelf_for
from popmi_core.matching import describe_model, random_element
from popmi_core.matching.elements import apply


@pytest.fixture
def make(small_vit, tmp_path):
    """Models near one another but each in a basis of its own, in memory and in files."""
    model = small_vit(depth=1, embed_dim=16)
    symmetry, reference = describe_model(model), {name: t.clone() for name, t in model.state_dict().items()}

    def run(count):
        held, opened = [], []
        for k in range(count):
            source = torch.Generator().manual_seed(k)
            near = {n: t + 0.05 * torch.randn(t.shape, generator=source, dtype=t.dtype) for n, t in reference.items()}
            state = near if k == 1 else apply(near, symmetry, random_element(symmetry, source))
            save_state(tmp_path / f"{k}.safetensors", state)
            held.append(Update(f"site_{k:02d}", state, 10 + k))
            opened.append(Update(f"site_{k:02d}", open_state(tmp_path / f"{k}.safetensors")[0], 10 + k))
        return held, opened, reference, symmetry

    return run


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("anchor", ["reference", "medoid", "mean_of_others"])
@pytest.mark.parametrize("rule", ["opm", "opm_soup", "opm_greedy_soup"])
def test_files_fuse_to_the_same_model_and_leave_nothing(make, temporary, rule, anchor):
    held, opened, reference, symmetry = make(3)

    def scorer(name, state):
        return {"clinic": Score(8, float(sum(tensor.double().square().sum() for tensor in state.values())))}

    fused = [
        fuse(rule, updates, reference=reference, symmetry=symmetry, scorer=scorer, anchor=anchor)
        for updates in (held, opened)
    ]

    # How a tensor lies in memory decides the order of sums.
    torch.testing.assert_close(fused[0].state, fused[1].state, rtol=1e-9, atol=1e-11)
    assert fused[0].notes == fused[1].notes
    assert any("moved" in note for key, note in fused[1].notes.items() if key.startswith("match."))
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("rule", ["average", "circuit", "adaptive_circuit", "median"])
def test_other_rules_read_files_too(make, rule):
    held, opened, reference, symmetry = make(3)

    fused = [fuse(rule, updates, reference=reference, symmetry=symmetry).state for updates in (held, opened)]

    torch.testing.assert_close(fused[0], fused[1], rtol=1e-9, atol=1e-11)


def test_no_more_is_in_memory_for_many_sites_than_for_few(make, temporary, monkeypatch):
    living, peaks = 0, {}
    read = FileState.__getitem__

    def watched(self, name):
        nonlocal living
        tensor = read(self, name)
        size = tensor.numel() * tensor.element_size()
        living += size
        peaks[count] = max(peaks.get(count, 0), living)

        def gone():
            nonlocal living
            living -= size

        weakref.finalize(tensor, gone)
        return tensor

    monkeypatch.setattr(FileState, "__getitem__", watched)
    for count in (2, 8):
        _, opened, reference, symmetry = make(count)
        fuse("opm", opened, reference=reference, symmetry=symmetry)

    assert peaks[8] <= peaks[2]
    size = sum(tensor.numel() * tensor.element_size() for tensor in reference.values())
    assert peaks[8] <= size


def test_a_model_in_memory_stays_there(make):
    held, _, _, _ = make(2)

    with shelf_for(held) as shelf:
        assert shelf.folder is None
        assert shelf.take(held[0]) is held[0]


def test_a_shelf_that_cannot_be_written_says_where(make, tmp_path):
    held, _, _, _ = make(2)
    (tmp_path / "file").write_text("")

    with pytest.raises(RunError, match=r"cannot write .*file.*TMPDIR names another folder"):
        Shelf(tmp_path / "file").take(held[0])


def test_the_medoid_is_found_in_files(make):
    held, opened, _, symmetry = make(3)

    assert medoid(opened, symmetry).site == medoid(held, symmetry).site

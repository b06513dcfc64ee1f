"""Models that stay in files: the same fusion, with memory that does not grow with the sites."""

import tempfile
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from popmi_core.checkpoints import open_state, save_state
from popmi_core.config import FuseConfig
from popmi_core.errors import RunError
from popmi_core.fusion import Score, Update, fuse
from popmi_core.fusion import shelf as shelf_module
from popmi_core.fusion.gate import never_worse
from popmi_core.fusion.opm import medoid
from popmi_core.fusion.shelf import Place, Shelf, shelf_for
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
    assert any(note.startswith("moved") for key, note in fused[1].notes.items() if key.startswith("match."))
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("rule", ["average", "circuit", "adaptive_circuit", "median"])
def test_other_rules_read_files_too(make, rule):
    held, opened, reference, symmetry = make(3)

    fused = [fuse(rule, updates, reference=reference, symmetry=symmetry).state for updates in (held, opened)]

    torch.testing.assert_close(fused[0], fused[1], rtol=1e-9, atol=1e-11)


class Living(TorchDispatchMode):
    """Counts the bytes of all tensors that are made while it is on and are not gone yet; views count nothing."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((arguments, named)) if isinstance(t, torch.Tensor)}
        made = function(*arguments, **(named or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in given:
                size = tensor.numel() * tensor.element_size()
                self.now += size
                self.most = max(self.most, self.now)
                weakref.finalize(tensor, self._gone, size)
        return made

    def _gone(self, size):
        self.now -= size


@pytest.mark.parametrize("rule", ["average", "circuit", "adaptive_circuit", "opm", "opm_soup"])
def test_no_more_is_in_memory_for_many_sites_than_for_few(make, temporary, rule):
    most = {}
    for count in (4, 12):
        _, opened, reference, symmetry = make(count)
        with Living() as living:
            fuse(rule, opened, reference=reference, symmetry=symmetry)
        most[count] = living.most
    size = sum(tensor.numel() * tensor.element_size() for tensor in reference.values())
    # A scalar a site, and what Python lets go of a moment later: less than a twentieth of a model.
    assert most[12] <= most[4] + 0.05 * size


@pytest.mark.parametrize("anchor", ["reference", "mean_of_others"])
def test_no_more_than_three_copies_wait_in_the_temporary_folder(make, temporary, monkeypatch, anchor):
    _, opened, reference, symmetry = make(6)
    waiting = []
    take = Shelf.take

    def counted(self, update):
        found = take(self, update)
        waiting.append(len(list(self.folder.iterdir())))
        return found

    monkeypatch.setattr(Shelf, "take", counted)
    fuse("opm", opened, reference=reference, symmetry=symmetry, anchor=anchor)

    assert 3 <= max(waiting) <= 3 * 6


def test_a_changed_file_ends_the_gate_too(make, tmp_path):
    held, opened, reference, symmetry = make(3)
    save_state(tmp_path / "0.safetensors", held[1].state)

    def scorer(name, state):
        return {"clinic": Score(8, 1.0)}

    with pytest.raises(RunError, match="was changed while it was in use"):
        never_worse(
            ["average", "opm"], opened, reference=reference, symmetry=symmetry, config=FuseConfig(), scorer=scorer
        )


def test_no_folder_for_temporary_files_is_said(make, tmp_path, monkeypatch):
    _, opened, _, _ = make(2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))

    with pytest.raises(RunError, match=r"no folder for matched models.*TMPDIR"), shelf_for(opened):
        pass


def test_a_model_in_memory_stays_there(make):
    held, _, _, _ = make(2)

    with shelf_for(held) as shelf:
        assert shelf.folder is None
        assert shelf.take(held[0]) is held[0]


def test_a_shelf_that_cannot_be_written_says_where(make, tmp_path):
    held, _, _, _ = make(2)
    (tmp_path / "file").write_text("")

    with pytest.raises(RunError, match=r"site site_00: cannot write .*file.*TMPDIR names another folder"):
        Shelf(tmp_path / "file").take(held[0])


def test_the_medoid_is_found_in_files(make):
    held, opened, _, symmetry = make(3)

    assert medoid(opened, symmetry).site == medoid(held, symmetry).site


@pytest.mark.parametrize("rule", ["opm", "opm_soup", "opm_greedy_soup"])
def test_moved_models_wait_where_they_are_told_to(make, temporary, tmp_path, monkeypatch, rule):
    _, opened, reference, symmetry = make(3)
    seen, take = [], Shelf.take

    def watched(self, update):
        seen.append(self.folder)
        return take(self, update)

    monkeypatch.setattr(Shelf, "take", watched)
    given = {"reference": reference, "symmetry": symmetry, "place": Place(tmp_path / "run" / "incoming")}
    # An anchor that moves models on the way puts them on the shelf with every rule.
    fuse(rule, opened, anchor="mean_of_others", scorer=lambda name, state: {"clinic": Score(8, 1.0)}, **given)
    never_worse([rule], opened, config=FuseConfig(), scorer=lambda name, state: {"clinic": Score(8, 1.0)}, **given)

    assert seen
    assert {folder.parent for folder in seen} == {tmp_path / "run" / "incoming"}
    assert not list((tmp_path / "run" / "incoming").iterdir())


def test_without_room_the_shelf_asks_whoever_is_patient_and_leaves_no_half(make, tmp_path, monkeypatch):
    held, _, _, _ = make(1)
    tries, write = [], shelf_module.save_file

    def full_once(tensors, path):
        tries.append(path)
        if len(tries) == 1:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        assert not path.exists()
        write(tensors, path)

    def patiently(action):
        with pytest.raises(RunError, match=r"site site_00: cannot write .*No space left.*Free some\."):
            action()
        return action()

    monkeypatch.setattr(shelf_module, "save_file", full_once)
    taken = Shelf(tmp_path, Place(tmp_path, patiently, "Free some.")).take(held[0])
    assert len(tries) == 2
    torch.testing.assert_close(dict(taken.state), dict(held[0].state))

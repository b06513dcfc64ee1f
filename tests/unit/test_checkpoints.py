"""Model files survive crashes, name their damage, and never run code."""

import pickle

import pytest
import torch
from safetensors.torch import save as format_tensors
from safetensors.torch import save_file

from popmi_core import atomic
from popmi_core.checkpoints import file_sha256, load_state, open_state, rows_of, save_state, with_more
from popmi_core.errors import ModelError, RunError


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    return {
        "head.weight": torch.randn(3, 4, generator=generator),
        "bn.running_mean": torch.randn(4, generator=generator, dtype=torch.float64),
        "counter": torch.tensor(7),
        "half": torch.randn(2, generator=generator).bfloat16(),
        "empty": torch.zeros(0, 3),
    }


def test_what_is_saved_comes_back_with_its_metadata(tmp_path, state):
    path = tmp_path / "deep" / "model.safetensors"
    digest = save_state(path, state, {"round": "3", "site": "msk"})
    loaded, metadata = load_state(path)
    assert metadata == {"round": "3", "site": "msk"}
    assert list(loaded) == sorted(state)
    assert all(torch.equal(loaded[name], state[name]) and loaded[name].dtype == state[name].dtype for name in state)
    assert digest == file_sha256(path)
    assert load_state(path, sha256=digest)[1] == metadata


def test_the_same_content_is_the_same_file_every_time(tmp_path):
    # safetensors alone writes metadata in a random order; equal models must have equal hashes.
    notes = {str(number): "x" for number in range(20)}
    raw = {format_tensors({"a": torch.ones(2)}, notes) for _ in range(5)}
    assert len(raw) > 1
    assert len({save_state(tmp_path / "m", {"a": torch.ones(2)}, notes) for _ in range(5)}) == 1


def test_views_are_saved_like_their_copies(tmp_path):
    views = {"a": torch.ones(2, 2).T, "b": torch.ones(2, 2)[0]}
    assert save_state(tmp_path / "v", views) == save_state(tmp_path / "w", {k: v.clone() for k, v in views.items()})


def test_every_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "model.safetensors"
    save_state(path, {"w": torch.arange(4.0)}, {"round": "1"})
    payload = path.read_bytes()
    # Padding between header and data carries nothing; every other byte counts.
    end = 8 + int.from_bytes(payload[:8], "little")
    padding = range(len(payload[:end].rstrip()), end)
    for position in range(len(payload)):
        damaged = bytearray(payload)
        damaged[position] ^= 0x01
        if position in padding:
            continue
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"altered|truncated|pickle"):
            load_state(path)


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "model.safetensors"
    save_state(path, {"w": torch.arange(4.0)})
    payload = path.read_bytes()
    for length in range(len(payload)):
        path.write_bytes(payload[:length])
        with pytest.raises(ModelError, match="truncated"):
            load_state(path)


@pytest.mark.parametrize("write", [lambda path, state: torch.save(state, path), None])
def test_a_pickle_is_refused_without_being_opened(tmp_path, state, write):
    path = tmp_path / "model.safetensors"
    if write is None:
        path.write_bytes(pickle.dumps({"w": 1}))
    else:
        write(path, state)
    with pytest.raises(ModelError, match="refused: not safetensors but a pickle"):
        load_state(path)


def test_no_header_length_is_mistaken_for_a_pickle(tmp_path):
    # The file starts with the header's length; 128 is also a pickle's first byte.
    lengths = set()
    for extra in range(0, 256, 8):
        save_state(tmp_path / "m", {"w": torch.ones(1)}, {"note": "x" * extra})
        lengths.add((tmp_path / "m").read_bytes()[0])
        assert load_state(tmp_path / "m")[1] == {"note": "x" * extra}
    assert 0x80 in lengths


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"cannot read checkpoint .*absent\.safetensors"):
        load_state(tmp_path / "absent.safetensors")
    with pytest.raises(ModelError, match=r"cannot read .*absent\.safetensors"):
        file_sha256(tmp_path / "absent.safetensors")


def test_a_file_from_elsewhere_loads_and_is_verified_by_the_hash_given(tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({"w": torch.ones(2)}, path, {"format": "pt"})
    assert load_state(path)[1] == {"format": "pt"}
    with pytest.raises(ModelError, match="expected 0000"):
        load_state(path, sha256="0000")


def test_nothing_to_save_and_reserved_keys_are_refused(tmp_path, state):
    with pytest.raises(ModelError, match="holds no tensor"):
        save_state(tmp_path / "m", {})
    with pytest.raises(ModelError, match=r"'popmi\.sha256' is reserved"):
        save_state(tmp_path / "m", state, {"popmi.sha256": "0"})


def test_a_folder_that_is_a_file_is_named(tmp_path, state):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="cannot write"):
        save_state(tmp_path / "file" / "m.safetensors", state)


def test_a_crash_while_writing_leaves_the_old_file_and_no_rubbish(tmp_path, state, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_state(path, {"w": torch.ones(1)})

    def power_cut(_handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.os, "fsync", power_cut)
    with pytest.raises(KeyboardInterrupt):
        save_state(path, state)
    assert list(load_state(path)[0]) == ["w"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]


def test_an_opened_file_gives_what_a_loaded_one_does(tmp_path, state):
    path = tmp_path / "model.safetensors"
    save_state(path, state, {"round": "3"})
    loaded, notes = load_state(path)
    opened, same_notes = open_state(path)
    assert (same_notes, list(opened), len(opened)) == (notes, list(loaded), len(loaded))
    assert all(torch.equal(opened[name], loaded[name]) and opened[name].dtype == loaded[name].dtype for name in loaded)
    assert opened.get("no such tensor") is None
    more = with_more(opened, {"another": torch.ones(2), "half": torch.zeros(2)})
    assert list(more) == sorted([*state, "another"])
    assert torch.equal(more["half"], torch.zeros(2))
    assert torch.equal(more["counter"], state["counter"])


def test_damage_is_noticed_when_a_file_is_opened(tmp_path, state):
    path = tmp_path / "model.safetensors"
    save_state(path, state)
    payload = path.read_bytes()
    for damaged in (payload[:-1], payload[:20], payload[:-1] + bytes([payload[-1] ^ 1]), b"\x80\x04pickle", b""):
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"model\.safetensors"):
            open_state(path)
    with pytest.raises(ModelError, match="cannot read checkpoint"):
        open_state(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_an_opened_file_that_changes_is_not_read_on(tmp_path, state, change):
    path = tmp_path / "model.safetensors"
    save_state(path, state)
    opened, _ = open_state(path)
    if change == "removed":
        path.unlink()
    else:
        save_state(path, {**state, "counter": torch.tensor(8)})
    for state_used in (opened, with_more(opened, {"another": torch.ones(1)})):
        with pytest.raises(RunError, match=r"model\.safetensors .*Leave the file alone meanwhile"):
            state_used["counter"]


def test_numbers_that_nobody_computes_with_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    header = b'{"w":{"dtype":"F8_E8M0","shape":[2],"data_offsets":[0,2]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(ModelError, match=r"'w' is F8_E8M0, expected one of F64, F32"):
        open_state(path)


def test_opened_states_are_told_apart_without_being_read(tmp_path, state):
    path = tmp_path / "model.safetensors"
    save_state(path, state)
    first, second = open_state(path)[0], open_state(path)[0]
    assert first == first
    assert first != second
    assert len({first, second}) == 2


def test_rows_of_an_opened_state_are_those_of_the_tensor_and_are_copies(tmp_path, state):
    path = tmp_path / "model.safetensors"
    save_state(path, state)
    opened = with_more(open_state(path)[0], {"another": torch.arange(5)})
    for name in ("head.weight", "half", "another", "empty"):
        held = opened[name]
        assert torch.equal(rows_of(opened, name, 1, 3), held[1:3])
        assert torch.equal(rows_of({name: held}, name, 1, 3), held[1:3])
    rows_of(opened, "head.weight", 0, 1).zero_()
    assert torch.equal(opened["head.weight"], state["head.weight"])


def test_rows_of_a_file_that_changed_or_of_no_tensor_are_refused(tmp_path, state):
    path = tmp_path / "model.safetensors"
    save_state(path, state)
    opened, _ = open_state(path)
    with pytest.raises(KeyError, match="nothing"):
        rows_of(opened, "nothing", 0, 1)
    path.unlink()
    with pytest.raises(RunError, match="Leave the file alone meanwhile"):
        rows_of(opened, "head.weight", 0, 1)

"""Model files: safetensors only, written atomically, verified when they are read.

The sha256 of the content lies in the file's own metadata, so a model and its proof can never be
separated, and one flipped byte is noticed. Nothing here unpickles.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as format_tensors
from torch import Tensor

from popmi_core.atomic import replace_atomically
from popmi_core.errors import ModelError, RunError

_FORMAT_KEY = "popmi.format"
_DIGEST_KEY = "popmi.sha256"
_FORMAT = "1"
_LENGTH_BYTES = 8
# What torch computes with; packed formats of 4 and 6 bits are none.
_TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "C64")
_PICKLE_STARTS = (b"\x80", b"PK")  # a bare pickle, and the zip that torch.save writes


def save_state(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write ``state`` and ``metadata`` to ``path`` in one step and return the file's sha256 (hex).

    A reader sees the old file or the new one, never a half. The same content gives the same bytes.

    Raises:
        ModelError: If the state is empty or a key is reserved.
        RunError: If the folder cannot be written.
    """
    if not state:
        raise ModelError(f"{path} was not written: the state holds no tensor. Pass at least one.")
    reserved = sorted({_FORMAT_KEY, _DIGEST_KEY} & set(metadata or {}))
    if reserved:
        raise ModelError(f"{path} was not written: metadata key {reserved[0]!r} is reserved. Rename it.")
    # safetensors refuses views and shared storage; clones are neither.
    tensors = {name: state[name].detach().cpu().contiguous().clone() for name in sorted(state)}
    notes = dict(metadata or {})
    notes |= {_FORMAT_KEY: _FORMAT, _DIGEST_KEY: _digest(tensors, notes)}
    payload = _in_fixed_order(format_tensors(tensors, notes))
    try:
        replace_atomically(path, payload)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror}. Check that the folder can be written and has room."
        ) from error
    return hashlib.sha256(payload).hexdigest()


def load_state(path: Path, *, sha256: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors (on the CPU, sorted by name) and the metadata of a safetensors file.

    Files from elsewhere carry no digest; give ``sha256`` (hex, of the whole file) to verify those.

    Raises:
        ModelError: If the file is missing, no safetensors, truncated, or altered since it was written.
    """
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"cannot read checkpoint {path}: {error.strerror}, expected a safetensors file. Check the path."
        ) from error
    if sha256 is not None and hashlib.sha256(payload).hexdigest() != sha256:
        got = hashlib.sha256(payload).hexdigest()
        raise ModelError(f"{path} has sha256 {got}, expected {sha256}. Copy the file again.")
    _refuse_pickle(path, payload)
    try:
        tensors = parse_tensors(payload)
        notes = _metadata(payload)
    except (SafetensorError, ValueError, KeyError) as error:
        raise _unreadable(path, len(payload), error) from error
    tensors = {name: tensors[name] for name in sorted(tensors)}
    _verify(path, tensors, notes)
    return tensors, _own_notes(notes)


class FileState(Mapping[str, Tensor]):
    """The tensors of a safetensors file, sorted by name, each read when it is asked for; none is held here.

    ``more``: further tensors, held in memory, that take part as if they were in the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.more: dict[str, Tensor] = {}
        self._seen = _identity(path)
        with safe_open(path, "pt") as file:
            self._inside = {name: str(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor.

        Raises:
            KeyError: If there is none of this name.
            RunError: If the file was changed or removed since it was opened.
        """
        return self.more[name] if name in self.more else self._read(name, lambda file: file.get_tensor(name))

    def _read(self, name: str, part: Callable[[Any], Tensor]) -> Tensor:
        if name not in self._inside:
            raise KeyError(name)
        try:
            with safe_open(self.path, "pt") as file:
                # A copy, for a tensor that came in this way keeps the whole file mapped.
                tensor = part(file).clone()
            unchanged = _identity(self.path) == self._seen
        except (OSError, SafetensorError) as error:
            raise RunError(f"{self.path} can no longer be read: {error}. Leave the file alone meanwhile.") from error
        if not unchanged:
            raise RunError(f"{self.path} was changed while it was in use. Leave the file alone meanwhile.")
        return tensor

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Read the rows ``start`` to ``stop`` of one tensor of at least one axis; errors as of ``[name]``."""
        if name in self.more:
            return self.more[name][start:stop]
        return self._read(name, lambda file: file.get_slice(name)[start:stop])

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._inside, *self.more}))

    def __contains__(self, name: object) -> bool:
        return name in self.more or name in self._inside

    # Two states are compared tensor by tensor by whoever needs it.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def types(self) -> dict[str, str]:
        """Return the number format of every tensor in the file, in the words of safetensors."""
        return dict(self._inside)

    def __len__(self) -> int:
        return len({*self._inside, *self.more})


def rows_of(state: Mapping[str, Tensor], name: str, start: int, stop: int) -> Tensor:
    """Return rows of one tensor of a state; of one that lies in a file only these are read."""
    return state.rows(name, start, stop) if isinstance(state, FileState) else state[name][start:stop]


def with_more(state: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the state with further tensors; what lies in a file stays there, and is still the file that was opened."""
    if not isinstance(state, FileState):
        return {**state, **more}
    wider = copy.copy(state)
    wider.more = {**state.more, **more}
    return wider


def open_state(path: Path) -> tuple[FileState, dict[str, str]]:
    """Return what ``load_state`` does with tensors that stay in the file: for many models, or large ones.

    It is read once here, a tensor at a time, to verify it.

    Raises:
        ModelError: If the file is missing, no safetensors, truncated, or altered since it was written.
    """
    try:
        with path.open("rb") as file:
            _refuse_pickle(path, file.read(_LENGTH_BYTES + 1))
        state = FileState(path)
        with safe_open(path, "pt") as file:
            notes = dict(file.metadata() or {})
    except OSError as error:
        raise ModelError(
            f"cannot read checkpoint {path}: {error.strerror}, expected a safetensors file. Check the path."
        ) from error
    except SafetensorError as error:
        raise _unreadable(path, path.stat().st_size, error) from error
    strange = sorted(name for name, kind in state.types.items() if kind not in _TYPES)
    if strange:
        raise ModelError(
            f"{path} refused: '{strange[0]}' is {state.types[strange[0]]}, expected one of {', '.join(_TYPES)}. "
            "Convert it where it was made."
        )
    _verify(path, state, notes)
    return state, _own_notes(notes)


def _identity(path: Path) -> tuple[int, int, int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _refuse_pickle(path: Path, payload: bytes) -> None:
    # A header length may happen to look like a pickle's first byte; a header never looks like a pickle.
    if payload.startswith(_PICKLE_STARTS) and payload[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{":
        raise ModelError(
            f"{path} refused: not safetensors but a pickle, which can run code. Convert it where it was made "
            "with safetensors.torch.save_file."
        )


def _unreadable(path: Path, size: int, error: Exception) -> ModelError:
    return ModelError(f"{path} refused: not safetensors, or truncated ({size} bytes: {error}). Copy the file again.")


def _own_notes(notes: Mapping[str, str]) -> dict[str, str]:
    return {key: notes[key] for key in sorted(notes) if key not in (_FORMAT_KEY, _DIGEST_KEY)}


def file_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file's bytes.

    Raises:
        ModelError: If the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}. Check the path.") from error


def _verify(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
    # Two keys: damage to the name of one leaves the other as a witness that there was a digest.
    if _FORMAT_KEY not in notes and _DIGEST_KEY not in notes:
        return
    own = {key: value for key, value in notes.items() if key not in (_FORMAT_KEY, _DIGEST_KEY)}
    if notes.get(_FORMAT_KEY) != _FORMAT or notes.get(_DIGEST_KEY) != _digest(tensors, own):
        raise ModelError(f"{path} was altered after it was written: its sha256 does not fit. Copy the file again.")


def _digest(tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(sorted(notes.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _header(payload: bytes) -> tuple[dict[str, object], int]:
    end = _LENGTH_BYTES + int.from_bytes(payload[:_LENGTH_BYTES], "little")
    return json.loads(payload[_LENGTH_BYTES:end]), end


def _metadata(payload: bytes) -> dict[str, str]:
    notes = _header(payload)[0].get("__metadata__", {})
    return {str(key): str(value) for key, value in notes.items()} if isinstance(notes, dict) else {}


def _in_fixed_order(payload: bytes) -> bytes:
    # safetensors writes metadata in the order of a randomised hash map; sorted, equal models are equal files.
    header, end = _header(payload)
    header["__metadata__"] = _metadata_sorted(payload)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + payload[end:]


def _metadata_sorted(payload: bytes) -> dict[str, str]:
    return dict(sorted(_metadata(payload).items()))

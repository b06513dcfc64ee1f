"""A trained model as ONNX, for programs without torch; written only where its answers are those of the model.

What goes in are pixels from 0 to 1: the model's own normalisation lies inside the file, so nobody can forget it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor, nn

from popmi_core.atomic import replace_atomically
from popmi_core.errors import ModelError, RunError
from popmi_core.models.inputs import channel_statistics

OPSET = 20
"""The operators' version; ONNX Runtime knows it since 1.17."""
INPUT, OUTPUT = "images", "logits"
TOLERANCE = 1e-4
"""Largest difference from torch's logits, per unit of the largest logit (1 at least). Both compute in float32, in other
orders: some 1e-7 an operation, over some hundred operations in a row."""
_BATCHES = (1, 3)
_SEED = 20


@dataclass(frozen=True)
class OnnxFile:
    """A model as ONNX and how it was compared.

    Attributes:
        payload: The file's bytes.
        image_size: Pixels per side.
        classes: Number of logits.
        difference: Largest absolute difference from torch's logits on random images.
        scale: Largest absolute logit there.
        compared_with: What ran the file: ``onnxruntime`` or ONNX's own ``reference`` evaluator.
    """

    payload: bytes
    image_size: int
    classes: int
    difference: float
    scale: float
    compared_with: str


class _FromPixels(nn.Module):
    """The model behind its own normalisation."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        mean, std = channel_statistics(model)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Float[Tensor, "n 3 side side"]) -> Float[Tensor, "n classes"]:
        answer: Tensor = self.model((images - self.mean) / self.std)
        return answer


def to_onnx(model: nn.Module, image_size: int, notes: Mapping[str, str] | None = None) -> OnnxFile:
    """Return ``model`` as ONNX: ``images`` [batch, 3, side, side], float32 from 0 to 1 -> ``logits`` [batch, classes].

    Any batch size goes in. The file knows nothing of the machine it was made on. It is compared with torch on random
    images (fixed seed), one alone and three together.

    Args:
        model: Normalised images -> logits, with float32 weights on the CPU; left in evaluation mode.
        image_size: Pixels per side.
        notes: What the file says of itself beside its weights (ONNX ``metadata_props``).

    Raises:
        ModelError: If the libraries are missing, the model cannot be told in ONNX's operators, or the file's answers
            are not the model's.
    """
    _require_libraries()
    whole = _FromPixels(model).eval()
    payload = _exported(whole, image_size, dict(notes or {}))
    run, name = _runner(payload)
    generator = torch.Generator().manual_seed(_SEED)
    difference, scale, classes = 0.0, 0.0, 0
    for batch in _BATCHES:
        images = torch.rand(batch, 3, image_size, image_size, generator=generator)
        with torch.inference_mode():
            expected = whole(images).numpy()
        got = run(images.numpy())
        if got.shape != expected.shape:
            raise ModelError(f"the ONNX file answers {got.shape}, expected {expected.shape}. Report the architecture.")
        difference = max(difference, float(np.abs(got - expected).max()))
        scale, classes = max(scale, float(np.abs(expected).max())), expected.shape[1]
    allowed = TOLERANCE * max(1.0, scale)
    # Not a number is not below anything.
    if not difference <= allowed:
        raise ModelError(
            f"the ONNX file's logits differ from the model's by {difference:g}, expected at most {allowed:g} "
            f"(by {name}). It was not written: use the safetensors file."
        )
    return OnnxFile(payload, image_size, classes, difference, scale, name)


def write_onnx(path: Path, made: OnnxFile, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Write the file and, last, beside it what it is (``NAME.onnx.json``); return that.

    Each is written in one step. A sheet whose ``sha256`` is not the file's is of an older one.

    Args:
        path: Where to.
        made: The model as ONNX.
        origin: What it was made of, such as its file's sha256; goes into the sheet as ``source``.

    Raises:
        RunError: If the folder cannot be written.
    """
    sheet = {
        "sha256": hashlib.sha256(made.payload).hexdigest(),
        "source": dict(origin),
        "opset": OPSET,
        "input": {"name": INPUT, "type": "float32", "shape": ["batch", 3, made.image_size, made.image_size]},
        "pixels": "red, green, blue from 0 to 1; the model's own normalisation is inside",
        "output": {"name": OUTPUT, "type": "float32", "shape": ["batch", made.classes]},
        "compared_with": made.compared_with,
        "largest_difference": made.difference,
        "largest_logit": made.scale,
    }
    try:
        replace_atomically(path, made.payload)
        replace_atomically(path.with_name(f"{path.name}.json"), f"{json.dumps(sheet, indent=1)}\n".encode())
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}. Check the folder's owner and room.") from error
    return sheet


def _require_libraries() -> None:
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ModelError(
            f"writing ONNX needs {' and '.join(missing)}, which is not installed here. Install popmi[server]."
        )


def _exported(whole: nn.Module, image_size: int, notes: dict[str, str]) -> bytes:
    example = torch.zeros(2, 3, image_size, image_size)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                whole, (example,), dynamo=True, opset_version=OPSET, verbose=False, input_names=[INPUT],
                output_names=[OUTPUT], dynamic_shapes=({0: torch.export.Dim("batch")},),
            )  # fmt: skip
        proto: Any = program.model_proto if program is not None else None
    except Exception as error:
        # The exporter raises its own kinds, and those of everything below it.
        said = str(error).strip().splitlines()
        raise ModelError(
            f"{type(getattr(whole, 'model', whole)).__name__} cannot be written as ONNX "
            f"({type(error).__name__}: {said[0] if said else 'no reason told'}). Use the safetensors file."
        ) from error
    _forget_the_machine(proto)
    for key in sorted(notes):
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, notes[key]
    payload: bytes = proto.SerializeToString(deterministic=True)
    return payload


def _forget_the_machine(proto: Any) -> None:
    """Take out what the exporter notes of every operator: lines of code with this machine's folders."""
    del proto.metadata_props[:]
    graphs = [proto.graph, *proto.functions]
    while graphs:
        graph = graphs.pop()
        values = [item for part in ("input", "output", "initializer") for item in getattr(graph, part, ())]
        for item in [graph, *graph.node, *graph.value_info, *values]:
            for field in ("metadata_props", "doc_string"):
                # A function's inputs are mere names.
                if not isinstance(item, str) and field in item.DESCRIPTOR.fields_by_name:
                    item.ClearField(field)
        graphs += [part.g for node in graph.node for part in node.attribute if part.HasField("g")]


def _runner(payload: bytes) -> tuple[Any, str]:
    """Return what runs the file, and its name: ONNX Runtime where it is there, else the slow reference."""
    if find_spec("onnxruntime") is not None:
        import onnxruntime

        session = onnxruntime.InferenceSession(payload, providers=["CPUExecutionProvider"])
        return lambda images: _first(session.run([OUTPUT], {INPUT: images})), "onnxruntime"
    import onnx
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(onnx.load_from_string(payload))
    return lambda images: _first(evaluator.run([OUTPUT], {INPUT: images})), "reference"


def _first(answers: Any) -> npt.NDArray[np.float32]:
    return np.asarray(answers[0], dtype=np.float32)


@contextmanager
def _quiet() -> Iterator[None]:
    # The exporter tells of guards and of operators of other libraries; none of it is for an operator.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

"""One trained model, opened from its file by what the file or the person says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from popmi_core.cli.cards import card_of
from popmi_core.cli.parents import Architecture, Parent, architecture_of, fitted, parse_arguments, read_parent


@dataclass(frozen=True)
class Opened:
    """A model with its weights, in evaluation mode, and where it came from.

    Attributes:
        model: Normalised images [n, 3, side, side] -> logits [n, classes].
        architecture: timm's name and arguments, adapter, number of classes, image size.
        parent: The file: its name without folders, sha256, tensors, notes.
        card: What POPMI wrote beside the weights; empty for other files.
        method: What was put around the model afterwards, and its group; empty where nothing was.
    """

    model: nn.Module
    architecture: Architecture
    parent: Parent
    card: dict[str, Any]
    method: str = ""


def open_model(
    path: Path,
    *,
    model: str | None = None,
    model_arg: Sequence[str] = (),
    adapter: str | None = None,
    lora_alpha: float | None = None,
    image_size: int | None = None,
) -> Opened:
    """Return the model in a safetensors file; what is not given is taken from the file's own card.

    Raises:
        ConfigError: If no name is given and the file has no card, or an argument is malformed.
        ModelError: If the file is missing, damaged, no safetensors, or of another architecture than said.
    """
    parent = read_parent(path)
    architecture = architecture_of(
        [parent],
        name=model,
        arguments=parse_arguments(model_arg),
        adapter=adapter,
        image_size=image_size,
        lora_alpha=lora_alpha,
    )
    whole = fitted([parent], architecture)[0].held()
    architecture.model.load_state_dict(dict(whole.state), strict=True)
    return Opened(architecture.model.eval(), architecture, whole, card_of(parent) or {})

"""From the server's message to a model: the broadcast tensors, and the site's own where it keeps some."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from flwr.app import Message
from torch import Tensor, nn

from popmi_core.config import ModelConfig
from popmi_core.errors import UpdateError
from popmi_core.matching import Symmetry, describe_model
from popmi_core.models import build_model, load_exchanged
from popmi_core.protocol import MODEL, Instruction, model_record, stays_at_site
from popmi_core.records import array_record

State = Mapping[str, Tensor]


def receive_model(
    message: Message, instruction: Instruction, kept: State | None = None
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the run's model with the broadcast tensors in it, and those tensors; ``kept`` ones take their place.

    Raises:
        UpdateError: If the message brings no model.
        ModelError: If it does not fit this site's model.
    """
    received = read_tensors(message, MODEL)
    if received is None:
        raise UpdateError("the server's message holds no model. Check that it runs the same POPMI version.")
    start = {**received, **(kept or {})}
    model = build_once(instruction)
    load_exchanged(model, start)
    return model, start


def receive_ensemble(message: Message, instruction: Instruction) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """Return the run's model and the broadcast states of an ensemble's members.

    Raises:
        UpdateError: If a member is missing.
        ModelError: If one does not fit this site's model.
    """
    model, members = build_once(instruction), []
    for number in range(instruction.num_models):
        state = read_tensors(message, model_record(number))
        if state is None:
            raise UpdateError(
                f"the server's message holds no model {number} of {instruction.num_models}. "
                "Check that it runs the same POPMI version."
            )
        load_exchanged(model, state)
        members.append(state)
    return model, members


def read_tensors(message: Message, record: str) -> dict[str, Tensor] | None:
    """Return the tensors of a message's record, None where it has no such record."""
    arrays = array_record(message.content, record)
    return None if not arrays else dict(arrays.to_torch_state_dict())


def split_kept(state: State, patterns: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors that travel and those that stay at the site."""
    shared = {name: tensor for name, tensor in state.items() if not stays_at_site(name, patterns)}
    return shared, {name: tensor for name, tensor in state.items() if name not in shared}


def build_once(instruction: Instruction) -> nn.Module:
    """Return the run's model, built once per process."""
    return _build(instruction.model, len(instruction.classes), instruction.seed)


def symmetry_of(instruction: Instruction) -> Symmetry:
    """Return the symmetries of the run's model, described once per process.

    Raises:
        ModelError: If the architecture cannot be described.
    """
    return _describe(instruction.model, len(instruction.classes), instruction.seed)


@lru_cache(maxsize=2)
def _describe(config: ModelConfig, num_classes: int, seed: int) -> Symmetry:
    return describe_model(_build(config, num_classes, seed), image_size=config.image_size)


@lru_cache(maxsize=2)
def _build(config: ModelConfig, num_classes: int, seed: int) -> nn.Module:
    # Frozen weights do not travel, so every site builds them from the same description and seed.
    return build_model(config, num_classes, seed=seed)

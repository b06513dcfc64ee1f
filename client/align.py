"""Put this site's update into the broadcast model's basis before it leaves; the function stays the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from client.receive import symmetry_of
from client.statistics import refuse_bare_statistics
from popmi_core.data import ImageSet
from popmi_core.matching import Matcher
from popmi_core.protocol import Instruction

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Aligned:
    """The update in its new basis; ``gains`` and ``identity`` by layer as the server's matching tells them."""

    state: dict[str, Tensor]
    gains: dict[str, float]
    identity: dict[str, bool]
    note: str = ""


def align(
    model: nn.Module, state: State, start: State, data: ImageSet, instruction: Instruction, site: str
) -> Aligned | None:
    """Return ``state`` in the basis of ``start``, or None where the server asks for no matching.

    Args:
        model: The run's model; its weights are not looked at.
        state: What the site has trained.
        start: The broadcast model it was trained from.
        data: The site's training images; looked at by *activations* and *learned* only.

    Raises:
        PrivacyError: If images would be looked at in a run with a privacy budget.
        ModelError: If the architecture's symmetries are not known.
        UpdateError: If the update does not fit the broadcast model or is not finite.
    """
    config = instruction.match
    if config is None or config.method == "none":
        return None
    if config.uses_images:
        refuse_bare_statistics(instruction, f"matching by {config.method}")
    matched = Matcher(start, symmetry_of(instruction), sweeps=config.sweeps).match(state, site=site)
    return Aligned(matched.state, matched.gains, matched.identity, matched.note)

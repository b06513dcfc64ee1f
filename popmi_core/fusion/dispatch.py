"""From a rule's name in the configuration to the rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from popmi_core.config import FuseConfig
from popmi_core.errors import ConfigError
from popmi_core.fusion import average, circuit, krum, median, trimmed_mean
from popmi_core.fusion.update import Fused, State, Update
from popmi_core.matching import ViTSymmetry

RULES: dict[str, Callable[..., Fused]] = {
    "average": average.fuse,
    "circuit": circuit.fuse,
    "krum": krum.fuse,
    "median": median.fuse,
    "trimmed_mean": trimmed_mean.fuse,
}


def fuse(
    rule: str,
    updates: Sequence[Update],
    *,
    reference: State,
    symmetry: ViTSymmetry | None = None,
    config: FuseConfig | None = None,
) -> Fused:
    """Fuse the updates by the rule of this name.

    Args:
        rule: A key of ``RULES``.
        updates: One per site, matched already if matching is on; their order does not matter.
        reference: The global model the round started from; gives names, shapes and number formats.
        symmetry: What ``describe_model`` said about the architecture; None where it knows nothing.
        config: Settings of the rules (``trim``, ``faulty``).

    Raises:
        ConfigError: If there is no such rule.
        UpdateError: If an update is unfit or the rule needs more sites.
    """
    if rule not in RULES:
        raise ConfigError(f"fuse.rule is {rule!r}, expected one of {', '.join(RULES)}. Correct the configuration.")
    return RULES[rule](updates, reference=reference, symmetry=symmetry, config=config or FuseConfig())

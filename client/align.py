"""Put this site's update into the broadcast model's basis before it leaves; the function stays the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Generator, Tensor, nn

from client.receive import symmetry_of
from client.statistics import some_images
from popmi_core.data import ImageSet
from popmi_core.fusion.path import midpoint_judge
from popmi_core.matching import Matched, Matcher, Symmetry, apply
from popmi_core.matching.learn import learn_element
from popmi_core.matching.starts import start_from
from popmi_core.matching.statistics import cross_statistics
from popmi_core.protocol import Instruction, derive_seed

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Aligned:
    """The update in its new basis; ``gains`` and ``identity`` by space as the server's matching tells them."""

    state: dict[str, Tensor]
    gains: dict[str, float]
    identity: dict[str, bool]
    note: str = ""


def align(
    model: nn.Module, state: State, start: State, data: ImageSet, instruction: Instruction, site: str
) -> Aligned | None:
    """Return ``state`` in the basis of ``start``, or None where the server asks for no matching.

    The caller has made sure that images may be looked at (``refuse_bare_statistics``).

    Args:
        model: The run's model; its weights are not looked at.
        state: What the site has trained.
        start: The broadcast model it was trained from.
        data: The site's training images; looked at by *activations* and *learned* only.

    Raises:
        DataError: If there are too few images to look at.
        ModelError: If the architecture's symmetries are not known.
        UpdateError: If the update does not fit the broadcast model or is not finite.
    """
    config = instruction.match
    if config is None or config.method == "none":
        return None
    symmetry = symmetry_of(instruction)
    if config.method == "permutations":
        symmetry = symmetry.permutations_only()
    matcher = Matcher(start, symmetry, sweeps=config.sweeps, restarts=config.starts - 1)
    if not config.uses_images:
        return _told(matcher.match(state, site=site))
    if not symmetry.names() <= set(start):
        # Images would be run through layers that the two models do not have of their own.
        found = _told(matcher.match(state, site=site))
        return replace(found, note=f"matched by weights, images not looked at: not every layer travels; {found.note}")
    images, _ = some_images(data, model, instruction, site)
    seen = start_from(cross_statistics(model, start, state, symmetry, images), symmetry)
    matched = matcher.match(state, site=site, starts=[seen], judge=midpoint_judge(model, start, state, images))
    if config.method == "activations" or matched.kin:
        return _told(matched)
    return _learned(model, state, start, symmetry, images, matched, instruction, site)


def _learned(
    model: nn.Module,
    state: State,
    start: State,
    symmetry: Symmetry,
    images: Tensor,
    matched: Matched,
    instruction: Instruction,
    site: str,
) -> Aligned:
    """Learn the move on the site's own images, from where the match ends.

    Towards what both ends say of the images rather than their classes: a few hundred images are then enough, where
    classes are learned by heart.
    """
    assert instruction.match is not None
    seed = derive_seed("learn", instruction.seed, site, instruction.server_round)
    found = learn_element(
        model,
        start,
        state,
        symmetry,
        images,
        None,
        start=matched.element,
        steps=instruction.match.learn_steps,
        learning_rate=instruction.match.learn_rate,
        generator=Generator().manual_seed(seed),
        loss="unsupervised",
    )
    identity = {name: name not in found.element.moves for name in symmetry.spaces}
    moved = dict(state) if all(identity.values()) else apply(state, symmetry, found.element, like=start)
    note = f"learned: loss half way {found.before:.4f} before, {found.after:.4f} after"
    return Aligned(moved, matched.gains, identity, note)


def _told(matched: Matched) -> Aligned:
    return Aligned(matched.state, matched.gains, matched.identity, matched.note)

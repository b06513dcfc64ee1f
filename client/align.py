"""Put this site's update into the broadcast model's basis before it leaves; the function stays the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch import Generator, Tensor, nn

from client.receive import symmetry_of
from client.statistics import some_images
from popmi_core.data import ImageSet
from popmi_core.fusion.path import line_judge
from popmi_core.matching import Matched, Matcher, Symmetry
from popmi_core.matching.elements import Element
from popmi_core.matching.learn import learn_match
from popmi_core.matching.moves import LayerTold, told_moves
from popmi_core.matching.probes import starts_from_probes
from popmi_core.matching.starts import start_from
from popmi_core.matching.statistics import cross_statistics
from popmi_core.protocol import Instruction, derive_seed

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Aligned:
    """The update in its new basis; ``gains``, ``identity`` and ``moves`` by space as the server's matching tells."""

    state: dict[str, Tensor]
    gains: dict[str, float]
    identity: dict[str, bool]
    note: str = ""
    moves: LayerTold = field(default_factory=LayerTold)


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
    if config.method in ("opm", "permutations"):
        return _told(matcher.match(state, site=site), matcher)
    if not symmetry.names() <= set(start):
        # Images would be run through layers that the two models do not have of their own.
        found = _told(matcher.match(state, site=site), matcher)
        return replace(found, note=f"matched by weights, images not looked at: not every layer travels; {found.note}")
    if config.method == "probes":
        seed = derive_seed("probes", instruction.seed, site, instruction.server_round)
        size, generator = instruction.model.image_size, Generator().manual_seed(seed)
        starts = starts_from_probes(model, start, state, symmetry, image_size=size, generator=generator)
        # No judge: how the midpoint answers to noise says little of how it answers to images.
        return _told(matcher.match(state, site=site, starts=starts), matcher)
    images, _ = some_images(data, model, instruction, site)
    return _told(_by_images(matcher, model, state, start, symmetry, images, instruction, site), matcher)


def _by_images(
    matcher: Matcher,
    model: nn.Module,
    state: State,
    start: State,
    symmetry: Symmetry,
    images: Tensor,
    instruction: Instruction,
    site: str,
) -> Matched:
    """Match from where activations agree best, judged half way; *learned*: then train the map."""

    def starts() -> Iterator[Element]:
        yield start_from(cross_statistics(model, start, state, symmetry, images), symmetry)

    matched = matcher.match(state, site=site, starts=starts(), judge=line_judge(model, start, state, images))
    config = instruction.match
    if config is None or config.method != "learned":
        return matched
    seed = derive_seed("learn", instruction.seed, site, instruction.server_round)
    return learn_match(
        model,
        start,
        state,
        symmetry,
        images,
        matched,
        steps=config.learn_steps,
        learning_rate=config.learn_rate,
        generator=Generator().manual_seed(seed),
    )


def _told(matched: Matched, matcher: Matcher) -> Aligned:
    moves = told_moves(matched, matcher.symmetry)
    return Aligned(dict(matched.state), matched.gains, matched.identity, matched.note, moves)

"""Put one model into another's basis, by weights alone or with the help of images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import nn

from popmi_core.cli.sites import some_of
from popmi_core.data import ImageSet
from popmi_core.errors import ConfigError
from popmi_core.fusion import State
from popmi_core.fusion.path import line_judge
from popmi_core.matching import Matched, Matcher
from popmi_core.matching.elements import Element
from popmi_core.matching.learn import SPAN, learn_match
from popmi_core.matching.probes import starts_from_probes
from popmi_core.matching.starts import start_from
from popmi_core.matching.statistics import cross_statistics
from popmi_core.matching.symmetry import Symmetry
from popmi_core.models import normalise

Method = Literal["weights", "permutations", "probes", "activations", "learned"]
METHODS: tuple[str, ...] = get_args(Method)
WITH_IMAGES = ("activations", "learned")
# Activations are settled by a few hundred images; a learned map generalises better with more.
_SEEN = {"activations": 512, "learned": 4096}
LEARNING_STEPS = 300
_SEED = 0


def check_method(method: str, *, has_images: bool) -> None:
    """Refuse an unknown way to match, or one that needs images where there are none.

    Raises:
        ConfigError: In both cases.
    """
    if method not in METHODS:
        raise ConfigError(f"--match {method}: expected one of {', '.join(METHODS)}.")
    if method in WITH_IMAGES and not has_images:
        raise ConfigError(f"--match {method} looks at images: give them with --data.")


class Aligner:
    """Match any number of models to one reference.

    Args:
        reference: The state whose basis counts.
        symmetry: The architecture's description.
        model: The architecture; its own weights do not matter.
        image_size: Pixels per side of probes; None takes what the model says.
        method: ``weights``; ``permutations``: the same without rotations; ``probes``: also from where activations on
            smooth noise agree best, so that no image is needed; ``activations``: also from where activations on the
            images agree best, the end being taken that half way says what both models say; ``learned``: from there the
            map is learned on the images. Neither looks at classes.
        share: What a matched model will count in the average with the reference: there on the line ``activations`` are
            judged, and from four fifths of it to one half a map is learned (of two alike: around the middle).
        starts: Descents by weights; those above 1 visit the layers in random order.
    """

    def __init__(
        self,
        reference: State,
        symmetry: Symmetry,
        model: nn.Module,
        *,
        method: str = "weights",
        image_size: int | None = None,
        share: float = 0.5,
        starts: int = 1,
    ) -> None:
        self.image_size, self.share = image_size, share
        self.symmetry = symmetry.permutations_only() if method == "permutations" else symmetry
        self.reference, self.model, self.method = reference, model, method
        self.matcher = Matcher(reference, self.symmetry, restarts=starts - 1)

    def match(self, state: State, *, label: str, seen: ImageSet | None = None) -> Matched:
        """Return the model in the reference's basis.

        Args:
            state: The model.
            label: Whom an error names.
            seen: Images to look at, for the methods that do.

        Raises:
            UpdateError: If the model does not fit the reference, or a loss is not finite.
        """
        if self.method == "probes":
            return self._by_probes(state, label)
        if self.method not in WITH_IMAGES or seen is None:
            return self.matcher.match(state, site=label)
        few = some_of(seen, _SEEN[self.method])
        return (self._learned if self.method == "learned" else self._by_activations)(state, label, few)

    def _by_probes(self, state: State, label: str) -> Matched:
        generator = torch.Generator().manual_seed(_SEED)
        starts = starts_from_probes(
            self.model, self.reference, state, self.symmetry, image_size=self.image_size, generator=generator
        )
        # No judge: how the midpoint answers to noise says little of how it answers to images.
        return self.matcher.match(state, site=label, starts=starts)

    def _by_activations(self, state: State, label: str, seen: ImageSet) -> Matched:
        pixels = normalise(torch.from_numpy(seen.images), self.model)

        def starts() -> Iterator[Element]:
            statistics = cross_statistics(self.model, self.reference, state, self.symmetry, pixels)
            yield start_from(statistics, self.symmetry)

        judge = line_judge(self.model, self.reference, state, pixels, share=self.share)
        return self.matcher.match(state, site=label, starts=starts(), judge=judge)

    def _learned(self, state: State, label: str, seen: ImageSet) -> Matched:
        return learn_match(
            self.model,
            self.reference,
            state,
            self.symmetry,
            normalise(torch.from_numpy(seen.images), self.model),
            self._by_activations(state, label, some_of(seen, _SEEN["activations"])),
            steps=LEARNING_STEPS,
            generator=torch.Generator().manual_seed(_SEED),
            span=SPAN if self.share == 0.5 else (min(0.8 * self.share, 0.5), max(0.8 * self.share, 0.5)),
        )

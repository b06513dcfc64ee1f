"""One case of the one-shot study: some parents, the images of their sites, and what methods may look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from parents import Parent, Recipe, build_parent, get_parent
from torch import Tensor, nn

from popmi_core.data import ImageSet, SiteData
from popmi_core.errors import ModelError
from popmi_core.fusion.ensemble import Answer
from popmi_core.fusion.grams import input_grams
from popmi_core.fusion.path import evaluate, run
from popmi_core.fusion.repair import norm_statistics, pool_norm_statistics, with_norm_statistics
from popmi_core.fusion.score import Score
from popmi_core.fusion.update import Symmetry
from popmi_core.matching import describe_model
from popmi_core.metrics import classification_metrics
from popmi_core.models import normalise

State = Mapping[str, Tensor]
# Unlabelled images of its own training split that a site lets a method look at: for activation statistics, and for
# RegMean's Gram matrices and maps learned without labels, which fit more numbers.
UNLABELLED, MORE_UNLABELLED = 256, 1024
# Images of one barrier: drawn once, the same for every method.
ON_PATH = {"test": 512, "train": 256}


class Case:
    """Parents to be fused; the first gives the basis. Every parent counts the same, whatever its site's size."""

    def __init__(self, dataset: str, architecture: str, parents: list[Parent], data: list[SiteData]) -> None:
        self.dataset, self.architecture, self.parents, self.data = dataset, architecture, parents, data
        self.name = f"{dataset}-{architecture}-" + "+".join(f"{p.recipe.site}{p.recipe.seed}" for p in parents)
        self.members = [f"{p.recipe.site}{p.recipe.seed}" for p in parents]
        # A model of this architecture to run states through; its own weights are never used.
        self.model = build_parent(parents[0].recipe, len(data[0].classes))
        self.has_batchnorm = any(isinstance(module, nn.BatchNorm2d) for module in self.model.modules())

    @property
    def states(self) -> list[dict[str, Tensor]]:
        """Return the parents' weights, the reference first."""
        return [parent.state for parent in self.parents]

    @cached_property
    def symmetry(self) -> Symmetry | None:
        """Return the tested description of the architecture, or None where there is none yet."""
        try:
            return describe_model(self.model)
        except ModelError:
            return None

    @cached_property
    def test(self) -> ImageSet:
        """Return the test images of all sites that take part, pooled."""
        return _union([site.test for site in self._sites()])

    @cached_property
    def on_path(self) -> dict[str, ImageSet]:
        """Return the images of the barriers, by split."""
        train = _union([site.train for site in self._sites()])
        return {"test": _draw(self.test, ON_PATH["test"], 1), "train": _draw(train, ON_PATH["train"], 2)}

    def unlabelled(self, member: int, count: int = UNLABELLED) -> ImageSet:
        """Return training images of one parent's site, drawn by the parent's seed (do not look at the targets)."""
        return _draw(self.data[member].train, count, self.parents[member].recipe.seed)

    def pixels(self, member: int, count: int = UNLABELLED) -> Tensor:
        """Return these images, normalised for the model."""
        return normalise(torch.from_numpy(self.unlabelled(member, count).images), self.model)

    def grams(self, member: int, state: State) -> dict[str, Tensor]:
        """Return RegMean's Gram matrices of one parent, in whatever basis its state is."""
        self.model.load_state_dict(dict(state))
        return input_grams(self.model, self.pixels(member, MORE_UNLABELLED))

    def repaired(self, state: State) -> dict[str, Tensor]:
        """Return the state with BatchNorm statistics measured anew on the sites' unlabelled images."""
        self.model.load_state_dict(dict(state))
        found = [norm_statistics(self.model, self.pixels(member)) for member in range(len(self.parents))]
        return with_norm_statistics(state, pool_norm_statistics(found))

    def scorer(self, name: str, state: State) -> dict[str, Score]:
        """Score a candidate on the validation images of every site that takes part."""
        return {site.site: Score(len(site.val), *evaluate(self.model, state, site.val)) for site in self._sites()}

    @property
    def splits_on_path(self) -> tuple[str, ...]:
        """Return where barriers are measured; on test images alone where every point has to be re-estimated too."""
        return ("test", "train") if self.dataset == "blood" and not self.has_batchnorm else ("test",)

    @cached_property
    def parents_probabilities(self) -> list[Answer]:
        """Return what every parent answers to the test images."""
        return [self.probabilities(state) for state in self.states]

    @cached_property
    def parents_losses(self) -> dict[str, list[float]]:
        """Return every parent's loss (nats) on the images of the barriers, by split."""
        return {
            split: [evaluate(self.model, state, data)[0] for state in self.states]
            for split, data in self.on_path.items()
        }

    def probabilities(self, state: State) -> Answer:
        """Return the class probabilities of the test images, ``float64 [n, classes]``."""
        rows = []
        with torch.inference_mode():
            for start in range(0, len(self.test), 512):
                images = normalise(torch.from_numpy(self.test.images[start : start + 512]), self.model)
                rows.append(torch.softmax(run(self.model, state, images).double(), dim=1).numpy())
        return np.concatenate(rows)

    def figures(self, probabilities: Answer) -> dict[str, float]:
        """Return accuracy, balanced accuracy, AUROC and loss (nats) on the test images."""
        found = classification_metrics(probabilities, self.test.targets)
        return {name: round(found[name], 6) for name in ("accuracy", "balanced_accuracy", "auroc", "nll", "ece")}

    def _sites(self) -> list[SiteData]:
        return list({site.site: site for site in self.data}.values())


def all_cases(
    dataset: str,
    architecture: str,
    sites: Mapping[str, SiteData],
    runs: Path,
    *,
    wanted: list[Recipe],
) -> Iterator[Case]:
    """Yield pairs, then fours, of the ``wanted`` parents, which have different starts.

    One site: all pairs of its first four seeds and all fours. Several sites: all pairs and the four of each seed.
    """
    found = [get_parent(recipe, sites[recipe.site], runs) for recipe in wanted]
    if len(sites) == 1:
        fours: list[tuple[Parent, ...]] = list(combinations(found, 4))
        pairs = list(combinations(found[:4], 2))
    else:
        fours = [tuple(found[start : start + 4]) for start in range(0, len(found), 4)]
        pairs = [pair for four in fours for pair in combinations(four, 2)]
    for group in (*pairs, *fours):
        yield Case(dataset, architecture, list(group), [sites[parent.recipe.site] for parent in group])


def _union(sets: list[ImageSet]) -> ImageSet:
    return ImageSet(np.concatenate([s.images for s in sets]), np.concatenate([s.targets for s in sets]))


def _draw(data: ImageSet, count: int, seed: int) -> ImageSet:
    chosen = np.random.default_rng(seed).permutation(len(data))[:count]
    return data.subset(np.sort(chosen))

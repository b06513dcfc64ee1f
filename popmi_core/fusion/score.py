"""How good a candidate is: the sites' validation losses, and which candidate is best on all of them together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from popmi_core.errors import ConfigError, UpdateError
from popmi_core.fusion.update import State


@dataclass(frozen=True)
class Score:
    """What one site found on its validation images: their number, mean loss (nats) and, if known, accuracy (0 to 1).

    A loss that is no number (a model that overflows) counts as infinite: such a candidate never wins.

    Raises:
        UpdateError: If the number of images is negative.
    """

    num_examples: int
    loss: float
    accuracy: float = math.nan

    def __post_init__(self) -> None:
        if self.num_examples < 0:
            raise UpdateError(
                f"a site scored on {self.num_examples} images, expected a count of at least 0. Check the reply."
            )
        if math.isnan(self.loss):
            object.__setattr__(self, "loss", math.inf)


# A candidate's name and state -> what each site finds.
Scorer = Callable[[str, State], Mapping[str, Score]]


class Scoreboard:
    """All candidates scored so far; compares them on the sites that scored every one of those compared."""

    def __init__(self, scorer: Scorer | None, *, rule: str) -> None:
        if scorer is None:
            raise ConfigError(
                f"rule {rule} chooses by validation loss but got no scorer. Let the sites score candidates on their "
                "validation images, or take rule 'average'."
            )
        self._scorer = scorer
        self._rule = rule
        self._scores: dict[str, dict[str, Score]] = {}

    def add(self, candidate: str, state: State) -> None:
        """Have the sites score one candidate.

        Raises:
            UpdateError: If no site has a validation image.
        """
        found = {site: score for site, score in self._scorer(candidate, state).items() if score.num_examples > 0}
        if not found:
            raise UpdateError(
                f"rule {self._rule}: no site scored candidate '{candidate}' on a validation image. "
                "Give a site a validation split, or take rule 'average'."
            )
        self._scores[candidate] = dict(sorted(found.items()))

    def losses(self, *candidates: str) -> list[float]:
        """Return the candidates' mean losses over all validation images of the sites that scored each of them.

        Raises:
            UpdateError: If no site scored all of them.
        """
        return self._means(candidates, lambda score: score.loss)

    def accuracies(self, *candidates: str) -> list[float]:
        """Return the candidates' accuracies over the same images; NaN where a site did not tell.

        Raises:
            UpdateError: If no site scored all of them.
        """
        return self._means(candidates, lambda score: score.accuracy)

    def regret(self, chosen: str) -> float:
        """Return the most a site loses (nats) because ``chosen`` is not the candidate best for it alone."""
        return max(
            0.0 if math.isinf(own) and math.isinf(best) else own - best
            for own, best in (
                (score.loss, min(table[site].loss for table in self._scores.values() if site in table))
                for site, score in self._scores[chosen].items()
            )
        )

    def table(self) -> dict[str, dict[str, float]]:
        """Return every site's loss for every candidate, as ``Fused.scores`` holds it."""
        return {name: {site: score.loss for site, score in found.items()} for name, found in self._scores.items()}

    def _means(self, candidates: tuple[str, ...], value: Callable[[Score], float]) -> list[float]:
        common = self._common(candidates)
        total = sum(self._scores[candidates[0]][site].num_examples for site in common)
        return [
            sum(table[site].num_examples * value(table[site]) for site in common) / total
            for table in (self._scores[name] for name in candidates)
        ]

    def _common(self, candidates: tuple[str, ...]) -> list[str]:
        first, *others = (self._scores[name] for name in candidates)
        common = [site for site in first if all(site in other for other in others)]
        if not common:
            raise UpdateError(
                f"rule {self._rule}: no site scored all of {', '.join(candidates)}, expected one to compare them on. "
                "Score the candidates at the same sites."
            )
        return common

"""What a fusion rule needs beyond the models, computed on the images that were given."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from popmi_core.cli.aligning import check_method
from popmi_core.cli.parents import Parent
from popmi_core.cli.sites import part_of, scorer_on, some_of, together
from popmi_core.data import ImageSet, SiteData
from popmi_core.errors import ConfigError
from popmi_core.fusion import RULES, Scorer, State, Update, needs
from popmi_core.fusion.grams import input_grams
from popmi_core.fusion.repair import norm_statistics, with_norm_statistics
from popmi_core.matching.statistics import cross_statistics
from popmi_core.matching.symmetry import Symmetry
from popmi_core.models import normalise

_NO_VALIDATION = (
    "Rules that choose and --gate score on validation images: give some with --data, or take another --rule."
)
_NO_TRAINING = (
    "RegMean, activations, learned maps and --repair look at training images: give some with --data, or do without."
)
# Activations and Gram matrices are settled by a few hundred images.
LOOKED_AT = 512


DEFAULT_RULE = "opm"
# What an OPM rule does once every model is in one basis.
AFTER_MATCHING = {
    "opm": "adaptive_circuit", "opm_soup": "average", "opm_greedy_soup": "greedy_soup", "opm_regmean": "regmean",
}  # fmt: skip


def rules_of(rule: str | None, gate: str | None, *, match: str, has_data: bool, models: int) -> tuple[str, ...]:
    """Return the rules to try, by the library's names, after checking that what they need is there.

    Args:
        rule: One rule's name, dashes allowed; None for opm.
        gate: Names with commas between, instead of ``rule``; None for no gate.
        match: How OPM rules match; anything but ``weights`` is theirs alone.
        has_data: Whether there are images.
        models: How many models there are.

    Raises:
        ConfigError: If there is no such rule, it needs images or more models than were given, or both a rule and a gate
            were.
    """
    if rule is not None and gate is not None:
        raise ConfigError(f"--rule {rule} and --gate {gate}: expected one of them. A gate may name {rule}, too.")
    named = [rule or DEFAULT_RULE] if gate is None else [part.strip() for part in gate.split(",") if part.strip()]
    if not named:
        raise ConfigError(f"--gate {gate}: no rule is named. Name rules with commas between.")
    rules = tuple(dict.fromkeys(name.replace("-", "_") for name in named))
    for name in rules:
        wanted, why = needs(name), _why_images(name)
        if why and not has_data:
            raise ConfigError(f"rule {name.replace('_', '-')} {why}: give images with --data.")
        if wanted.sites > models:
            raise ConfigError(f"rule {name.replace('_', '-')} needs {wanted.sites} models, got {models}. Name more.")
    check_method(match, has_images=has_data)
    if match != "weights":
        require_matching(f"--match {match}", rules, gate=gate is not None)
    if gate is not None and not has_data:
        raise ConfigError("--gate compares rules on validation images: give them with --data.")
    return rules


def require_matching(option: str, rules: Sequence[str], *, gate: bool) -> None:
    """Refuse an option that says how models are matched where no OPM rule, or several rules, would match them.

    Raises:
        ConfigError: In both cases; it names the option.
    """
    if gate or rules[0] not in AFTER_MATCHING:
        names = ", ".join(name.replace("_", "-") for name in AFTER_MATCHING)
        raise ConfigError(f"{option} goes with one rule of {names}. Take one of these with --rule.")


@dataclass(frozen=True, eq=False)
class RuleInputs:
    """The images, and how each rule sees them. With as many sites as models, the n-th model sees the n-th site.

    ``repair``: candidates are scored as the result will be, with norm statistics measured anew.
    """

    model: nn.Module
    parents: Sequence[Parent]
    sites: dict[str, SiteData]
    repair: bool = False

    def scorer(self) -> Scorer | None:
        """Return what scores a state on every site's validation images; None without images.

        Raises:
            DataError: If no site has validation images.
        """
        if not self.sites:
            return None
        score = scorer_on(self.model, part_of(self.sites, "val", remedy=_NO_VALIDATION))
        return (lambda name, state: score(name, self.repaired(state))) if self.repair else score

    def options(self, rule: str, reference: State, symmetry: Symmetry | None) -> dict[str, Any]:
        """Return what this rule takes beyond the common arguments."""
        taken = inspect.signature(RULES[rule]).parameters
        options: dict[str, Any] = {}
        # A rule that can do without looks at weights where there is nothing to look at, and says so in its notes.
        looks = needs(rule).statistics or any(len(data.train) for data in self.sites.values())
        if "statistics" in taken and symmetry is not None and looks:
            options["statistics"] = {
                parent.label: cross_statistics(
                    self.model, reference, parent.state, symmetry, self._pixels(parent.label)
                )
                for parent in self.parents
            }
        if needs(rule).grams and "grams_of" in taken:
            options["grams_of"] = self.grams
        return options

    def with_grams(self, rules: Sequence[str], updates: Sequence[Update]) -> list[Update]:
        """Return the updates, with Gram matrices where one of the rules wants them to come along."""
        if not any(needs(r).grams and "grams_of" not in inspect.signature(RULES[r]).parameters for r in rules):
            return list(updates)
        return [replace(update, grams=self.grams(update.site, update.state)) for update in updates]

    def grams(self, label: str, state: State) -> dict[str, Tensor]:
        """Return the input Gram matrices of a state on the images its parent sees."""
        return input_grams(self._loaded(state), self._pixels(label))

    def repaired(self, state: State) -> dict[str, Tensor]:
        """Return the state with BatchNorm statistics measured on its own (unchanged without BatchNorm)."""
        return with_norm_statistics(state, norm_statistics(self._loaded(state), self._pixels(None)))

    def _pixels(self, label: str | None) -> Float[Tensor, "n 3 side side"]:
        images = some_of(self.seen(label), LOOKED_AT)
        return normalise(torch.from_numpy(images.images), self.model)

    def seen(self, label: str | None) -> ImageSet:
        """Return the training images that a parent sees, or all of them for None.

        Raises:
            DataError: If there are none.
        """
        sites = self.sites
        if label is not None and len(sites) == len(self.parents):
            place = [parent.label for parent in self.parents].index(label)
            sites = dict([list(sites.items())[place]])
        return together(part_of(sites, "train", remedy=_NO_TRAINING))

    def _loaded(self, state: State) -> nn.Module:
        model = copy.deepcopy(self.model)
        model.load_state_dict(dict(state), strict=True)
        return model


def _why_images(rule: str) -> str:
    wanted = needs(rule)
    if wanted.scorer:
        return "chooses by validation loss"
    if wanted.grams:
        return "needs what every layer sees on images (Gram matrices)"
    return "matches by activations on images" if wanted.statistics else ""

"""From a rule's name in the configuration to the rule, and what each rule needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from popmi_core.config import FuseConfig
from popmi_core.errors import ConfigError, ModelError, UpdateError
from popmi_core.fusion import (
    adaptive_circuit,
    average,
    best_single,
    circuit,
    fedma,
    git_rebasin,
    git_rebasin_activations,
    greedy_soup,
    krum,
    lowrank,
    median,
    opm,
    opm_regmean,
    opm_soup,
    ot_fusion,
    ot_fusion_soft,
    regmean,
    soup,
    trimmed_mean,
)
from popmi_core.fusion.score import Scorer
from popmi_core.fusion.shelf import TEMPORARY, Place
from popmi_core.fusion.update import Fused, State, Symmetry, Update

RULES: dict[str, Callable[..., Fused]] = {
    "average": average.fuse,
    "best_single": best_single.fuse,
    "adaptive_circuit": adaptive_circuit.fuse,
    "circuit": circuit.fuse,
    "fedma": fedma.fuse,
    "git_rebasin": git_rebasin.fuse,
    "git_rebasin_activations": git_rebasin_activations.fuse,
    "greedy_soup": greedy_soup.fuse,
    "krum": krum.fuse,
    "lowrank": lowrank.fuse,
    "median": median.fuse,
    "opm": opm.fuse,
    "opm_greedy_soup": opm_soup.fuse_greedily,
    "opm_regmean": opm_regmean.fuse,
    "opm_soup": opm_soup.fuse,
    "ot_fusion": ot_fusion.fuse,
    "ot_fusion_soft": ot_fusion_soft.fuse,
    "regmean": regmean.fuse,
    "trimmed_mean": trimmed_mean.fuse,
    "uniform_soup": soup.fuse,
}
# An answer, not a model: see popmi_core/fusion/ensemble.py.
REFERENCES = ("ensemble",)


@dataclass(frozen=True)
class Needs:
    """What a rule cannot work without, so that a run that lacks it is refused when it is planned.

    ``scorer``: sites score candidates on validation images. ``grams``: sites send RegMean's Gram matrices.
    ``statistics``: sites compare activations with the reference's (``cross_statistics``; option ``statistics``).
    ``symmetry``: the architecture must be described. ``matches``: the rule puts the updates into one basis itself;
    any other rule expects them in one basis. ``sites``: the fewest updates it takes.
    """

    scorer: bool = False
    grams: bool = False
    statistics: bool = False
    symmetry: bool = False
    matches: bool = False
    sites: int = 1


_NEEDS: dict[str, Needs] = {
    "best_single": Needs(scorer=True),
    "fedma": Needs(symmetry=True, matches=True),
    "git_rebasin": Needs(symmetry=True, matches=True),
    "git_rebasin_activations": Needs(statistics=True, symmetry=True, matches=True),
    "greedy_soup": Needs(scorer=True),
    "krum": Needs(sites=5),
    "opm": Needs(symmetry=True, matches=True),
    "opm_greedy_soup": Needs(scorer=True, symmetry=True, matches=True),
    "opm_regmean": Needs(grams=True, symmetry=True, matches=True),
    "opm_soup": Needs(symmetry=True, matches=True),
    "ot_fusion": Needs(symmetry=True, matches=True),
    "ot_fusion_soft": Needs(symmetry=True, matches=True),
    "regmean": Needs(grams=True),
}


def needs(rule: str, config: FuseConfig | None = None) -> Needs:
    """Return what the rule of this name needs.

    Raises:
        ConfigError: If there is no such rule.
    """
    rule = rule.replace("-", "_")
    _known(rule)
    if rule == "krum" and config is not None:
        return Needs(sites=2 * config.faulty + 3)
    return _NEEDS.get(rule, Needs())


def fuse(
    rule: str,
    updates: Sequence[Update],
    *,
    reference: State,
    symmetry: Symmetry | None = None,
    config: FuseConfig | None = None,
    scorer: Scorer | None = None,
    place: Place = TEMPORARY,
    **options: Any,
) -> Fused:
    """Fuse the updates by the rule of this name.

    Args:
        rule: A key of ``RULES``; dashes and underscores are the same.
        updates: One per site, in one basis unless ``needs(rule).matches``; their order does not matter.
        reference: The global model the round started from; gives names, shapes and number formats.
        symmetry: What ``describe_model`` said about the architecture; None where it knows nothing.
        config: Settings of the rules (``trim``, ``faulty``, ``regmean_shrink``).
        scorer: Scores a candidate at every site (see ``Score``), for the rules that choose.
        place: Where models that were moved wait, for the rules that move them and updates that lie in files.
        options: Further keyword arguments of this one rule, such as ``grams_of`` of the RegMean rules.

    Raises:
        ConfigError: If there is no such rule or option, or the rule needs a scorer and has none.
        ModelError: If the rule needs the architecture described and it is not.
        UpdateError: If an update is unfit, or the rule needs more sites or Gram matrices that did not come.
    """
    rule = rule.replace("-", "_")
    function = _known(rule)
    known = inspect.signature(function).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(f"rule {rule} has no option '{unknown[0]}'. See its docstring for those it has.")
    _refuse_unfit(rule, updates, symmetry, scorer, options)
    if "place" in known:
        options["place"] = place
    return function(
        updates, reference=reference, symmetry=symmetry, config=config or FuseConfig(), scorer=scorer, **options
    )


def _refuse_unfit(
    rule: str,
    updates: Sequence[Update],
    symmetry: Symmetry | None,
    scorer: Scorer | None,
    options: Mapping[str, Any],
) -> None:
    """Raise if something that the rule needs is missing (see ``fuse``)."""
    wanted = needs(rule)
    if wanted.scorer and scorer is None:
        raise ConfigError(
            f"rule {rule} chooses by validation loss but got no scorer. Let the sites score candidates on their "
            "validation images, or take rule 'average'."
        )
    if wanted.symmetry and symmetry is None:
        raise ModelError(
            f"rule {rule} needs the architecture's symmetries but got none. Pass what describe_model says, or take "
            "rule 'average'."
        )
    if wanted.statistics and not options.get("statistics"):
        raise UpdateError(
            f"rule {rule} matches by activations but got no statistics of any site. Have the sites compute them "
            "(cross_statistics), or take a rule that looks at weights."
        )
    missing = sorted(update.site for update in updates if not update.grams)
    if wanted.grams and missing and len(updates) > 1 and not options.get("grams_of"):
        raise UpdateError(
            f"rule {rule} needs every site's input Gram matrices, but {', '.join(missing)} sent none. "
            "Have the sites compute them (input_grams), or take rule 'average'."
        )


def _known(rule: str) -> Callable[..., Fused]:
    if rule in REFERENCES:
        raise ConfigError(
            f"'{rule}' is a reference for comparison that gives answers, not a model. Use it where models are "
            "evaluated; to fuse, take one of the other rules."
        )
    if rule not in RULES:
        raise ConfigError(f"there is no fusion rule {rule!r}, expected one of {', '.join(RULES)}. Correct its name.")
    return RULES[rule]

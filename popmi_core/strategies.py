"""What the name of a strategy stands for: a preset of the parts of a run, each of which may be given explicitly.

And what the rules of fusing need, as far as a run's description must know it; ``popmi_core.fusion.needs`` says more.
"""

from __future__ import annotations

from typing import Any

_AT_SITE = {"method": "opm", "where": "site"}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "opm": {"match": {"method": "opm"}, "fuse": {"rule": "adaptive_circuit"}},
    "opm-soup": {"match": {"method": "opm"}, "fuse": {"rule": "average"}},
    "opm-greedy-soup": {"match": {"method": "opm"}, "fuse": {"rule": "greedy_soup"}},
    # Matched at the site: the Gram matrices are then measured in the common basis.
    "opm-regmean": {"match": _AT_SITE, "fuse": {"rule": "regmean"}},
    # A learned map is fitted to the straight line between two models, so its end is the plain average.
    "opm-learned": {"match": {"method": "learned", "where": "site"}, "fuse": {"rule": "average"}},
    "opm-gated": {"fuse": {"rule": "opm", "gate": ["circuit", "opm_soup", "regmean"]}},
    "fedavg": {},
    "fedprox": {"local": {"objective": "proximal"}},
    "fedadam": {"server_optimizer": {"name": "adam", "learning_rate": 0.01}},
    "fedyogi": {"server_optimizer": {"name": "yogi", "learning_rate": 0.01}},
    "uniform-soup": {"fuse": {"rule": "uniform_soup"}},
    "greedy-soup": {"fuse": {"rule": "greedy_soup"}},
    "circuit": {"fuse": {"rule": "circuit"}},
    "adaptive-circuit": {"fuse": {"rule": "adaptive_circuit"}},
    "lowrank": {"fuse": {"rule": "lowrank"}},
    "regmean": {"fuse": {"rule": "regmean"}},
    "git-rebasin": {"fuse": {"rule": "git_rebasin"}},
    "git-rebasin-activations": {"fuse": {"rule": "git_rebasin_activations"}},
    "ot-fusion": {"fuse": {"rule": "ot_fusion"}},
    "ot-fusion-soft": {"fuse": {"rule": "ot_fusion_soft"}},
    "fedma": {"fuse": {"rule": "fedma"}},
    "fedmedian": {"fuse": {"rule": "median"}},
    "trimmed-mean": {"fuse": {"rule": "trimmed_mean"}},
    "krum": {"fuse": {"rule": "krum"}},
    "best-single": {"fuse": {"rule": "best_single"}},
    "ensemble": {"fuse": {"rule": "ensemble"}},
    "local": {},
    "pooled": {},
}

MATCHING_RULES: frozenset[str] = frozenset(
    {"opm", "opm_soup", "opm_greedy_soup", "opm_regmean", "git_rebasin", "git_rebasin_activations"}
    | {"ot_fusion", "ot_fusion_soft", "fedma"}
)
"""Rules that put the models into one basis themselves, and so need the architecture's symmetry."""
GRAM_RULES: frozenset[str] = frozenset({"regmean", "opm_regmean"})
"""Rules that need the layers' input Gram matrices, which the sites compute on their own images."""
STATISTIC_RULES: frozenset[str] = frozenset({"git_rebasin_activations"})
"""Rules that need to know what the sites' models and the broadcast one make of the same images."""
SCORING_RULES: frozenset[str] = frozenset({"best_single", "greedy_soup", "opm_greedy_soup"})
"""Rules that choose among candidates, which the sites score on their validation images."""

"""What the name of a strategy stands for: a preset of the parts of a run, each of which may be given explicitly."""

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

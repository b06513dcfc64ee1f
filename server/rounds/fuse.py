"""Make one model of the matched ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from popmi_core.config import STATISTIC_RULES, FuseConfig
from popmi_core.errors import UpdateError
from popmi_core.fusion import Fused, Score, Scorer, Update, fuse
from popmi_core.fusion.gate import never_worse
from popmi_core.fusion.shelf import TEMPORARY, Place
from popmi_core.matching import Symmetry
from popmi_core.matching.statistics import CrossStatistics


def fuse_updates(
    updates: Sequence[Update],
    *,
    reference: Mapping[str, Tensor],
    symmetry: Symmetry | None,
    config: FuseConfig,
    scorer: Scorer | None = None,
    statistics: Mapping[str, CrossStatistics] | None = None,
    place: Place = TEMPORARY,
) -> Fused:
    """Return the fused model, the sites' weights in it, and which rule each part was averaged by.

    With ``config.gate`` the best of several rules on the sites' validation images; where no site can judge, the plain
    average, saying so. ``statistics``: what sites saw in activations, by site, for the rules that need it. ``place``:
    where models that a rule moved wait.

    Raises:
        UpdateError: If the rule cannot work with these updates (Krum: too few; RegMean: no Gram matrices).
    """
    options: dict[str, dict[str, Any]] = {rule: {"statistics": statistics} for rule in STATISTIC_RULES if statistics}
    known: dict[str, Any] = {"reference": reference, "symmetry": symmetry, "config": config, "place": place}
    if not config.gate or scorer is None:
        return fuse(config.rule, updates, scorer=scorer, **known, **options.get(config.rule, {}))
    heard = _Heard(scorer)
    try:
        return never_worse(config.rules, updates, scorer=heard, options=options, **known)
    except UpdateError:
        if heard.anyone:
            raise
        plain = fuse("average", updates, **known)
        return replace(plain, notes={**plain.notes, "gate": "no site could judge a candidate: plain average"})


class _Heard:
    """A scorer that remembers whether any site ever had a say."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer, self.anyone = scorer, False

    def __call__(self, candidate: str, state: Mapping[str, Tensor]) -> Mapping[str, Score]:
        found = self._scorer(candidate, state)
        self.anyone = self.anyone or any(score.num_examples > 0 for score in found.values())
        return found


def move_control(
    control: Mapping[str, Tensor], changes: Sequence[Mapping[str, Tensor]], *, num_sites: int
) -> dict[str, Tensor]:
    """Return the server's control variate after a round, ``c + (1/N) * sum of the sites' changes``.

    Karimireddy et al. 2020, SCAFFOLD, arXiv:1910.06378, algorithm 1, line 17.
    """
    moved = {name: tensor.clone() for name, tensor in control.items()}
    for change in changes:
        for name, tensor in change.items():
            step = tensor.double() / num_sites
            moved[name] = (moved[name].double() + step if name in moved else step).to(tensor.dtype)
    return moved

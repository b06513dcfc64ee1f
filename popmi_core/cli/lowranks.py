"""Low-rank adapters in the files of `popmi fuse` and `popmi barrier`: on which layers, of which rank, how scaled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from popmi_core.adapters import add_lora
from popmi_core.cli.cards import named
from popmi_core.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from popmi_core.cli.parents import Parent

_A = ".lora_A.weight"


@dataclass(frozen=True)
class LowRank:
    """The adapters all parents have: rank by layer, and alpha (each is scaled by alpha / rank; None: by one).

    ``told``: whether alpha was asked for or a file says it; otherwise it is taken as the rank.
    """

    ranks: dict[str, int]
    alpha: float | None
    told: bool

    def to_json(self) -> dict[str, Any]:
        """Return layers, ranks and alpha as plain values."""
        return {"ranks": self.ranks, "alpha": self.alpha}

    def in_words(self) -> str:
        """Return how many adapters there are, of which rank, and how they are scaled."""
        ranks = ", ".join(map(str, sorted(set(self.ranks.values()))))
        scale = "their rank" if self.alpha is None else f"{self.alpha:g}"
        why = "" if self.told else " (no file says it; else give --lora-alpha)"
        return f"low-rank adapters of rank {ranks} on {len(self.ranks)} layers, alpha is {scale}{why}"

    def on(self, model: nn.Module, *, file: str) -> nn.Module:
        """Return a copy of the model with these adapters, which ``file`` has.

        Raises:
            ModelError: If a layer is none of the model's linear ones or smaller than the rank.
        """
        layers = dict(model.named_modules())
        for layer, rank in self.ranks.items():
            base = layers.get(layer)
            if type(base) is not nn.Linear or rank > min(base.in_features, base.out_features):
                raise ModelError(
                    f"{file} has a low-rank adapter of rank {rank} on '{layer}', which is no linear layer of this "
                    "model that takes it. Check --model and --model-arg."
                )
        for rank in sorted(set(self.ranks.values())):
            names = tuple(layer for layer, own in self.ranks.items() if own == rank)
            model = add_lora(model, names, rank=rank, alpha=self.alpha, train="all")
        return model


def low_rank_of(parents: Sequence[Parent], cards: Sequence[Mapping[str, Any]], asked: float | None) -> LowRank | None:
    """Return the low-rank adapters that the parents have in common, None where they have none.

    Args:
        parents: The models.
        cards: What each file says of its model; empty for files from elsewhere.
        asked: Alpha as it was asked for.

    Raises:
        ConfigError: If alpha is asked for and there is no adapter, or it is not above 0.
        ModelError: If parents have adapters on other layers, of another rank or scale.
    """
    first, ranks = parents[0], _ranks(parents[0])
    for parent in parents[1:]:
        own = _ranks(parent)
        for layer in sorted({*ranks, *own}):
            if own.get(layer) != ranks.get(layer):
                raise ModelError(
                    f"the models have different low-rank adapters on '{layer}': {first.file} "
                    f"{_said(ranks.get(layer))}, {parent.file} {_said(own.get(layer))}. Take models of one "
                    "rank, or merge their adapters first (popmi_core.adapters.merge_lora)."
                )
    if asked is not None and not (ranks and 0 < asked < math.inf):
        why = "expected a number above 0" if ranks else f"{first.file} has no low-rank adapter. Leave it out"
        raise ConfigError(f"--lora-alpha {asked:g}: {why}.")
    if not ranks:
        return None
    told = {} if asked is None else {"--lora-alpha": asked}
    told |= {who: card["lora"]["alpha"] for who, card in zip(named(parents), cards, strict=True) if _tells(card)}
    # The rank itself is what None stands for.
    alphas = [None if {value} == set(ranks.values()) else value for value in told.values()]
    if len(set(alphas)) > 1:
        listed = ", ".join(f"{who} {'the rank' if value is None else f'{value:g}'}" for who, value in told.items())
        raise ModelError(f"the models' low-rank adapters are scaled by different alpha: {listed}. Merge them first.")
    return LowRank(ranks, next(iter(alphas), None), bool(alphas))


def _tells(card: Mapping[str, Any]) -> bool:
    lora = card.get("lora")
    alpha = lora.get("alpha", "") if isinstance(lora, Mapping) else ""
    return alpha is None or (isinstance(alpha, int | float) and alpha > 0)


def _ranks(parent: Parent) -> dict[str, int]:
    """Return the rank of every layer with an adapter beside its weight; other names are left to be refused."""
    names = (name for name in parent.state if name.endswith(_A))
    found = {name.removesuffix(_A): parent.state[name] for name in names}
    return {layer: len(first) for layer, first in found.items() if first.ndim == 2}


def _said(rank: int | None) -> str:
    return "none" if rank is None else f"rank {rank}"

"""What the next round needs beside the global model, as one flat table of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

State = Mapping[str, Tensor]


@dataclass
class Carried:
    """State of the server optimiser, the server's control variate; by site: own models, entries in its privacy ledger.

    Random state is no part of it: nothing on the server draws from one that lives on. Every generator is made anew from
    a seed, and sites derive theirs from seed, site and round (tests/federation/test_resume.py).
    """

    optimizer: dict[str, Tensor] = field(default_factory=dict)
    control: dict[str, Tensor] = field(default_factory=dict)
    sites: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    ledgers: dict[str, int] = field(default_factory=dict)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return everything by a name that says what it is."""
        flat = {f"optimizer/{name}": tensor for name, tensor in self.optimizer.items()}
        flat |= {f"control/{name}": tensor for name, tensor in self.control.items()}
        for site, state in self.sites.items():
            flat |= {f"site/{site}/{name}": tensor for name, tensor in state.items()}
        return flat | {f"ledger/{site}": torch.tensor(count) for site, count in self.ledgers.items()}

    @classmethod
    def from_tensors(cls, flat: State) -> Carried:
        """Return what ``to_tensors`` was made of."""
        sites: dict[str, dict[str, Tensor]] = {}
        for name, tensor in _below("site/", flat).items():
            site, _, parameter = name.partition("/")
            sites.setdefault(site, {})[parameter] = tensor
        ledgers = {site: int(count) for site, count in _below("ledger/", flat).items()}
        return cls(_below("optimizer/", flat), _below("control/", flat), sites, ledgers)


def _below(prefix: str, tensors: State) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

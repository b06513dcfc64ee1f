"""What a run asks its sites: decided here alone. The server asks by it, and a site tells by it what would leave.

Whatever a part of a run needs from the sites is one of ``Asks``' questions or parts, or it is not asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from popmi_core.config import MatchConfig, RunConfig
from popmi_core.measure import TurningAsk
from popmi_core.protocol import JUDGE, MEASURE_NORMS, Assignment, Instruction, Split, Statistic
from popmi_core.strategies import SCORING_RULES

# Questions, as Flower names message types.
JOINING, TRAINING, EVALUATING = "query", "train", "evaluate"
JUDGING, MEASURING = f"evaluate.{JUDGE}", f"query.{MEASURE_NORMS}"

Part = Literal[
    "class_counts", "epsilon", "control", "gram", "activations", "matching", "judged", "norms", "turned", "trained_on"
]  # fmt: skip
"""What answers hold in some runs only, beside the model, its loss and the figures of an evaluation."""


def common_rules(config: RunConfig) -> tuple[str, ...]:
    """Return the rules that make a common model; none where every site keeps its own or there is one stand-in."""
    return () if config.strategy in ("local", "ensemble") else config.fuse.rules


@dataclass(frozen=True)
class Asks:
    """The questions of a run, and what the answers hold.

    Attributes:
        config: The run.
        norm_layers: Whether its model has layers that keep running statistics (BatchNorm).
    """

    config: RunConfig
    norm_layers: bool = True

    @classmethod
    def of(cls, config: RunConfig, names: Iterable[str]) -> Asks:
        """Return what a run asks whose model has tensors of these names."""
        return cls(config, any(name.endswith("running_mean") for name in names))

    @property
    def questions(self) -> tuple[str, ...]:
        """Every kind of question, in the order in which it is asked first."""
        between = {JUDGING: self.judged, MEASURING: self.norms}
        return (JOINING, TRAINING, *(kind for kind, asked in between.items() if asked), EVALUATING)

    @property
    def parts(self) -> tuple[Part, ...]:
        """What answers hold beyond those of every run."""
        held: dict[Part, bool] = {
            "class_counts": self.count_classes,
            "epsilon": self.config.privacy is not None,
            "control": self.control,
            "gram": "gram" in self.statistics,
            "activations": "activations" in self.statistics,
            "matching": self.match is not None,
            "judged": self.judged,
            "norms": self.norms,
            "turned": self.turning(final=True) is not None,
            "trained_on": "train" in self.splits(final=True),
        }
        return tuple(part for part, asked in held.items() if asked)

    @property
    def count_classes(self) -> bool:
        """Whether sites tell how many training images every class has."""
        return self.config.personal.class_prior == "own"

    @property
    def control(self) -> bool:
        """Whether control variates travel (SCAFFOLD)."""
        return self.config.local.objective == "control_variates"

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """What is measured on the model that a site sends; nothing where nobody fuses."""
        fuse, fused = self.config.fuse, bool(common_rules(self.config))
        grams: tuple[Statistic, ...] = ("gram",) if fused and fuse.needs_grams else ()
        seen: tuple[Statistic, ...] = ("activations",) if fused and fuse.needs_statistics else ()
        return (*grams, *seen)

    @property
    def match(self) -> MatchConfig | None:
        """How a site matches its update before it sends it; None where it does not."""
        match = self.config.match
        return match if match.where == "site" and match.method != "none" else None

    @property
    def judged(self) -> bool:
        """Whether candidates are scored on the sites' validation images, by the gate or by a rule that chooses."""
        rules = common_rules(self.config)
        return bool(rules) and (bool(self.config.fuse.gate) or not SCORING_RULES.isdisjoint(rules))

    @property
    def norms(self) -> bool:
        """Whether BatchNorm statistics of the fused model, and of every candidate, are measured anew (REPAIR)."""
        return self.config.fuse.repair and self.norm_layers and bool(common_rules(self.config))

    def splits(self, *, final: bool) -> tuple[Split, ...]:
        """Return the splits that are evaluated; test and training images are looked at in the last round only.

        Figures of training images would leave without noise, so a run with a privacy budget has none.
        """
        if not final:
            return ("val",)
        train = self.config.measure.train_figures == "last" and self.config.privacy is None
        return ("val", "test", "train") if train else ("val", "test")

    def turning(self, *, final: bool) -> TurningAsk | None:
        """Return how sites turn their validation images in a round; None where they do not."""
        measure = self.config.measure
        if measure.turning == "never" or (measure.turning == "last" and not final):
            return None
        return TurningAsk(angles=measure.angles, images=measure.turned_images, lee_images=measure.lee_images)

    def evaluating(self, *, final: bool) -> dict[str, Any]:
        """Return the fields of an instruction that belong to the evaluation of a round."""
        return {"splits": self.splits(final=final), "turning": self.turning(final=final)}

    def instruction(
        self,
        *,
        run: str,
        server_round: int,
        classes: tuple[str, ...],
        nonce: str = "",
        lineup: tuple[Assignment, ...] = (),
        class_counts: tuple[int, ...] = (),
        **changes: Any,
    ) -> Instruction:
        """Return what all sites are told with a question; ``changes`` are further fields of the instruction."""
        config = self.config
        return Instruction(
            run=run,
            server_round=server_round,
            rounds=config.rounds,
            nonce=nonce,
            seed=config.seed,
            classes=classes,
            model=config.model,
            local=config.local,
            privacy=config.privacy,
            phantom_images=config.data.phantom_images,
            lineup=lineup,
            keep_local=config.personal.keep_local,
            num_images=config.match.num_images,
            class_counts=class_counts,
            **changes,
        )

    def joining(self) -> dict[str, Any]:
        """Return the fields of an instruction that belong to the first question."""
        return {"count_classes": self.count_classes}

    def training(self) -> dict[str, Any]:
        """Return the fields of an instruction that belong to training."""
        return {"match": self.match, "statistics": self.statistics}

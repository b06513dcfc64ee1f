"""Have the sites judge candidate models, and keep what they said."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from popmi_core.asking import JUDGING, MEASURING
from popmi_core.fusion import Score
from server.desk import Desk
from server.results import Judgement
from server.rounds.judge import collect_judgements
from server.rounds.repair import collect_norms, repaired

State = Mapping[str, Tensor]


class SiteScorer:
    """Scores candidates on the sites' validation images (``popmi_core.fusion.Scorer``), one message a site each.

    A site that fails is left out of the scores. With ``repair`` a candidate's BatchNorm statistics are measured at the
    sites before it is judged, as they would be if it were taken.

    Args:
        desk: Over which the sites are asked.
        server_round: The round the candidates belong to.
        repair: Whether BatchNorm statistics are measured anew.
        warn: Told of every site that could not answer.
    """

    def __init__(self, desk: Desk, server_round: int, *, repair: bool, warn: Callable[[str], None]) -> None:
        self.desk, self.server_round, self.repair, self.warn = desk, server_round, repair, warn
        self.judged: dict[str, dict[str, Judgement]] = {}
        self.seconds = 0.0

    def __call__(self, candidate: str, state: State) -> dict[str, Score]:
        """Return every site's score of the candidate."""
        if self.repair:
            state = self.repaired(state)
        instruction = self.desk.instruction(self.server_round, candidate=candidate)
        replies = self.desk.aside(JUDGING, instruction, state)
        judged, outcomes = collect_judgements(replies, self.desk.expected(self.server_round, model=False))
        for item in outcomes:
            self.seconds += item.report.seconds if item.report is not None else 0.0
            if item.outcome != "ok":
                self.warn(f"{item.site} could not judge candidate {candidate}: {item.reason}")
        self.judged[candidate] = judged
        return {
            site: Score(found.num_examples, found.loss, float("nan") if found.accuracy is None else found.accuracy)
            for site, found in judged.items()
        }

    def repaired(self, state: State) -> dict[str, Tensor]:
        """Return the state with BatchNorm statistics measured at the sites (REPAIR).

        As it was where no site could measure, or where what comes of their statistics is not finite.
        """
        instruction = self.desk.instruction(self.server_round)
        replies = self.desk.aside(MEASURING, instruction, state)
        measured, outcomes = collect_norms(replies, self.desk.expected(self.server_round), state)
        for item in outcomes:
            self.seconds += item.report.seconds if item.report is not None else 0.0
            if item.outcome != "ok":
                self.warn(f"{item.site} could not measure BatchNorm statistics: {item.reason}")
        mended = repaired(state, measured)
        odd = sorted(name for name, tensor in mended.items() if not bool(tensor.isfinite().all()))
        if odd:
            self.warn(
                f"round {self.server_round}: the statistics of {', '.join(measured)} pooled give '{odd[0]}' NaN or "
                "infinity, expected finite values; the model keeps the statistics it had"
            )
            return dict(state)
        return mended

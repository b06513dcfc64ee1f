"""Who is ahead in the one-shot study, by medians and case by case, and what the results themselves say of why."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Figure = Callable[[Row], float]
# The measure that decides who is ahead, chosen before the study ran: classes are even in one set, skewed in the other.
DECIDES = {"blood": "accuracy", "dermoscopy": "auroc"}
CLASSES = {"blood": 8, "dermoscopy": 7}
LOOKS = ("weights", "unlabelled", "labelled")
SAID = {
    "weights": "weights only",
    "unlabelled": "weights and unlabelled images",
    "labelled": "weights and labelled images",
}
WORDS = {1: "ahead", 0: "level", -1: "**behind**"}
# One average, uniform_soup, of parents in a basis found by weights, by activations, by learned maps.
SAME_AVERAGE = ("OPM-Soup", "OPM-Soup, statistics", "OPM, maps learned without labels")
# Said of nets where a rival is ahead by weights.
OF_NETS = {"popmi_mlp": "Without a stream to turn, both look for the same permutations."}


@dataclass(frozen=True)
class Duel:
    """The best OPM variant and the best rival by median, and what the one has more than the other, case by case."""

    ours: str
    theirs: str
    medians: tuple[float, float]
    more: tuple[float, ...]

    @property
    def wins(self) -> int:
        """In how many cases OPM is better."""
        return sum(value > 0 for value in self.more)

    @property
    def signs(self) -> tuple[int, int]:
        """1, 0 or -1: who is ahead by medians, and who is better in more cases."""
        by_cases = self.wins - sum(value < 0 for value in self.more)
        return _sign(self.medians[0] - self.medians[1]), _sign(by_cases)

    @property
    def word(self) -> str:
        """Who is ahead; both ways of looking are told where they differ."""
        by_medians, by_cases = self.signs
        if by_medians == by_cases:
            return WORDS[by_medians]
        return f"{WORDS[by_medians]} by medians, {WORDS[by_cases]} case by case"

    @property
    def told(self) -> str:
        """The cases in words."""
        ties = self.more.count(0.0)
        level = f", level in {ties}" if ties else ""
        more = statistics.median(self.more)
        return f"better in {self.wins} of {len(self.more)} cases{level}, median difference {more:+.3f}"

    @property
    def unknown(self) -> str:
        """What the rival is and nobody knows why; nothing where cases do not bear the medians out."""
        by_medians, by_cases = self.signs
        if by_cases >= 0:
            return f"Case by case {self.theirs} is not ahead."
        return f"Why {self.theirs} is {'better in more cases' if by_medians >= 0 else 'ahead'} is not known."


def judged(row: Row, measure: str, level: int) -> float:
    """Return a figure; where images may be looked at, every method's BatchNorm statistics are measured anew."""
    return float((row.get("repaired", row) if level else row)[measure])


def duel_of(rows: Sequence[Row], measure: str, level: int) -> Duel | None:
    """Return the duel of what may look at so much; None where a side has no method."""
    return _duel(allowed(rows, level), lambda row: judged(row, measure, level))


def duel_after_epoch(rows: Sequence[Row], measure: str) -> Duel | None:
    """Return the duel of the methods that were trained on for one epoch."""
    return _duel([row for row in rows if "after_epoch" in row], lambda row: float(row["after_epoch"][measure]))


def allowed(rows: Sequence[Row], level: int) -> list[Row]:
    """Return the rows of the methods that look at no more than ``LOOKS[level]``."""
    return [row for row in rows if row["looks"] in LOOKS[: level + 1]]


def verdicts(rows: Sequence[Row], measure: str) -> list[str]:
    """Return one line for what methods may look at, and one for what an epoch makes of the fused models."""
    lines = []
    for level, looks in enumerate(LOOKS):
        if (duel := duel_of(rows, measure, level)) is not None:
            line = f"- {SAID[looks]}: {_sides(duel)} (median {measure}): OPM {duel.word}; {duel.told}."
            why = _why(rows, duel, measure, level) if min(duel.signs) < 0 else ""
            lines.append(line + _one_class(rows, duel, level) + why)
    if (duel := duel_after_epoch(rows, measure)) is not None:
        lines.append(_after_epoch(rows, duel, measure))
    return lines


def _after_epoch(rows: Sequence[Row], duel: Duel, measure: str) -> str:
    ours, theirs = ([row for row in rows if row["method"] == name] for name in (duel.ours, duel.theirs))
    shares = [[row["after_epoch"][measure] / row["best_parent"] for row in mine] for mine in (ours, theirs)]
    line = (
        f"- after one epoch: {_sides(duel)} (median {measure}; of the best parent "
        f"{statistics.median(shares[0]):.3f} and {statistics.median(shares[1]):.3f}): OPM {duel.word}; {duel.told}. "
        f"OPM is above the best parent in {sum(share > 1 for share in shares[0])} of {len(ours)} cases."
    )
    if min(duel.signs) < 0:
        before = [statistics.median(judged(row, measure, 1) for row in mine) for mine in (ours, theirs)]
        line += f" Before the epoch they had {before[0]:.3f} and {before[1]:.3f}. {duel.unknown}"
    return line


def _why(rows: Sequence[Row], duel: Duel, measure: str, level: int) -> str:
    """Return what the results say where a rival is ahead: whether it is by loss, too, and whether it is the basis."""
    told = [_by_loss(rows, duel, measure, level)]
    if level == 0:
        told += [_basis(rows, measure), OF_NETS.get(rows[0]["architecture"], "")]
    return "".join(f" {said}" for said in (*told, duel.unknown) if said)


def _by_loss(rows: Sequence[Row], duel: Duel, measure: str, level: int) -> str:
    losses = {
        name: _by_case(rows, name, lambda row: judged(row, "nll", level))
        for name in dict.fromkeys(row["method"] for row in allowed(rows, level))
        if name == duel.theirs or any(row["method"] == name and row["side"] == "opm" for row in rows)
    }
    theirs = losses.pop(duel.theirs)
    ours, least = losses[duel.ours], min(losses, key=lambda name: statistics.median(losses[name].values()))
    lower = sum(ours[case] < theirs[case] for case in ours)
    medians = [statistics.median(found.values()) for found in (ours, theirs, losses[least])]
    told = f"By loss {medians[0]:.3f} and {medians[1]:.3f} nats, OPM's lower in {lower} of {len(ours)} cases."
    if medians[2] < medians[0]:
        reached = statistics.median(_by_case(rows, least, lambda row: judged(row, measure, level)).values())
        told += f" Of OPM's rules {least} has the lowest loss, {medians[2]:.3f}, at {measure} {reached:.3f}."
    return told


def _one_class(rows: Sequence[Row], duel: Duel, level: int) -> str:
    """Return a warning where a fused model answers as if there were one class: its loss then tells nothing apart."""
    classes = CLASSES[rows[0]["dataset"]]
    found = {
        name: statistics.median(_by_case(rows, name, lambda row: judged(row, "balanced_accuracy", level)).values())
        for name in (duel.ours, duel.theirs)
    }
    same = [f"{name} {value:.3f}" for name, value in found.items() if abs(value - 1 / classes) < 0.003]
    if not same:
        return ""
    return f" Balanced accuracy is that of one class for every image ({' and '.join(same)}; one of {classes} classes)."


def _basis(rows: Sequence[Row], measure: str) -> str:
    """Return whether the same average is better in a basis found with images."""
    found = [_by_case(rows, name, lambda row: judged(row, measure, 1)) for name in (*SAME_AVERAGE, "ensemble")]
    if not all(found):
        return ""
    medians = [statistics.median(values.values()) for values in found]
    better = [sum(values[case] > found[0][case] for case in found[0]) for values in found[1:3]]
    most = [2 * count > len(found[0]) for count in better]
    parent = statistics.median(row["best_parent"] for row in rows)
    meant = "weights alone do not find the basis that images find" if all(most) else "that settles nothing"
    meant = meant if any(most) else "a basis found with images is no better, so it is not that"
    again = " (BatchNorm re-estimated throughout)" if any("repaired" in row for row in rows) else ""
    return (
        f"Is it the basis? The same average{again} has {medians[0]:.3f} in OPM's basis by weights, {medians[1]:.3f} by "
        f"statistics (better in {better[0]} of {len(found[0])} cases), {medians[2]:.3f} by maps learned without labels "
        f"(better in {better[1]}); the ensemble, which needs no basis, {medians[3]:.3f}, the best parent {parent:.3f}: "
        f"{meant}."
    )


def _duel(rows: Sequence[Row], figure: Figure) -> Duel | None:
    best = [_best(rows, side, figure) for side in ("opm", "rival")]
    if best[0] is None or best[1] is None:
        return None
    (ours, first), (theirs, second) = best[0], best[1]
    mine, other = _by_case(rows, ours, figure), _by_case(rows, theirs, figure)
    return Duel(ours, theirs, (first, second), tuple(mine[case] - other[case] for case in mine if case in other))


def _best(rows: Sequence[Row], side: str, figure: Figure) -> tuple[str, float] | None:
    medians = {
        name: statistics.median(_by_case(rows, name, figure).values())
        for name in dict.fromkeys(row["method"] for row in rows if row["side"] == side)
    }
    return max(medians.items(), key=lambda item: item[1]) if medians else None


def _by_case(rows: Sequence[Row], name: str, figure: Figure) -> dict[tuple[str, ...], float]:
    return {tuple(row["parents"]): figure(row) for row in rows if row["method"] == name}


def _sides(duel: Duel) -> str:
    return f"{duel.ours} {duel.medians[0]:.3f}, best rival {duel.theirs} {duel.medians[1]:.3f}"


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)

"""A model's card: what it was trained on, by whom, how well it does, and what it must not be taken for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from popmi_core.atomic import replace_atomically
from popmi_core.errors import RunError
from popmi_core.protocol import RunPlan
from server.results import RoundResult, bounded_figures

LIMITS = (
    "Research software: not a medical device, not for diagnosis.",
    "Figures are on the sites' own validation images unless said otherwise.",
)
LOCAL_LIMIT = (
    "Strategy local has no common model: this file holds the weights all sites started from. The figures are of the "
    "sites' own models, kept in the run folder's state/ under the same round."
)
ENSEMBLE_LIMIT = (
    "Strategy ensemble has no common model: this file holds the weights all sites started from. The figures are of all "
    "sites' own models together, which are kept in the run folder's state/ under the same round."
)
KEPT_LIMIT = (
    "Tensors with these names stay at the sites: {names}. In their place this file holds what they started from: the "
    "figures are of the sites' complete models, not of this file alone."
)
PRIOR_LIMIT = (
    "The sites' figures are of answers weighted by each site's own class frequencies (personal.class_prior = 'own'); "
    "this file answers for all sites together, and so does the external figure."
)
PHANTOM_LIMIT = "Trained on a phantom (computer-drawn images): its figures say nothing about patients."


def model_card(plan: RunPlan, done: RoundResult) -> dict[str, Any]:
    """Return the card of a round's global model as plain JSON values; no name or time, so that equal runs agree."""
    return {
        "round": done.server_round,
        "rounds": plan.config.rounds,
        "strategy": plan.config.strategy,
        "seed": plan.config.seed,
        "model": plan.config.model.model_dump(mode="json"),
        "classes": list(plan.classes),
        "data": plan.data_name,
        "phantom": plan.phantom,
        "sites": {item.site: item.report.num_examples for item in done.train if item.outcome == "ok" and item.report},
        "left_out": {item.site: f"{item.outcome}: {item.reason}" for item in done.train if item.outcome != "ok"},
        "rules": dict(done.fused.notes) if done.fused is not None else {"void": done.note},
        "metrics": {
            split: {name: _rounded(item.value) for name, item in bounded_figures(pooled).items()}
            for split, pooled in done.evaluation.pooled.items()
        },
        "external": {name: _rounded(value) for name, value in done.evaluation.external.items()},
        "equivariance": None if done.equivariance is None else dict(done.equivariance),
        "privacy": plan.config.privacy.model_dump(mode="json") if plan.config.privacy is not None else None,
        "limits": [
            *((PHANTOM_LIMIT,) if plan.phantom else ()),
            *_own_limits(plan),
            *LIMITS,
        ],
    }


def write_card(path: Path, run: str, card: dict[str, Any], sha256: str) -> None:
    """Write the card for a person to read, beside the model it belongs to.

    Raises:
        RunError: If the folder cannot be written.
    """
    lines = [f"# {run}, round {card['round']} of {card['rounds']}", ""]
    lines += [f"- {limit}" for limit in card["limits"]]
    lines += [
        f"- Data: {card['data']}{' (phantom)' if card['phantom'] else ''}; classes: {', '.join(card['classes'])}",
        f"- Model: {card['model']['backbone']} at {card['model']['image_size']} px, adapter "
        f"{card['model']['adapter']['group']}{_low_rank(card['model'].get('lora'))}; strategy {card['strategy']}, "
        f"seed {card['seed']}",
        *_equivariance(card.get("equivariance")),
        f"- sha256 of the file: {sha256}",
        "",
        "| site | training images |",
        "| --- | --- |",
        *(f"| {site} | {count} |" for site, count in card["sites"].items()),
        *(f"| {site} | not in this round: {why} |" for site, why in card["left_out"].items()),
    ]
    for split, figures in {**card["metrics"], "external": card["external"]}.items():
        if figures:
            lines += ["", f"| {split} | value |", "| --- | --- |"]
            lines += [f"| {name} | {'undefined' if value is None else value} |" for name, value in figures.items()]
    try:
        replace_atomically(path, ("\n".join(lines) + "\n").encode())
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror}. Check that the folder can be written and has room."
        ) from error


def _low_rank(lora: dict[str, Any] | None) -> str:
    return "" if lora is None else f", low-rank adapters of rank {lora['rank']} on {', '.join(lora['targets'])}"


def _equivariance(found: dict[str, Any] | None) -> list[str]:
    # Cards of earlier versions have no such entry.
    if not found:
        return []
    held = "hold" if found["holds"] else "DO NOT hold"
    worst = f", furthest off: {found['tensor']}" if found["tensor"] else ""
    return [
        f"- Equivariance: weights kept as {found['stored']} {held} {found['group']}; largest residue "
        f"{found['residue']:g} of {found['constrained']} constrained weight(s), at most {found['tolerance']:g} "
        f"allowed{worst}. What this proves and what not: docs/certificate.md"
    ]


def _own_limits(plan: RunPlan) -> list[str]:
    kept = plan.config.personal.keep_local
    limits = {"local": [LOCAL_LIMIT], "ensemble": [ENSEMBLE_LIMIT]}.get(plan.config.strategy, [])
    limits += [PRIOR_LIMIT] if plan.config.personal.class_prior == "own" else []
    return [*limits, *([KEPT_LIMIT.format(names=", ".join(kept))] if kept else [])]


def _rounded(value: float) -> float | None:
    return round(value, 6) if value == value else None

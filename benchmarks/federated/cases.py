"""What the federated study compares: named runs, each a change to one base description."""

from __future__ import annotations

from typing import Any

from popmi_core.config import overlay

TOTAL_EPOCHS = 20
BASE: dict[str, Any] = {
    "model": {"backbone": "popmi_vit_nano", "image_size": 32, "patch_size": 8},
    "local": {"learning_rate": 1e-3, "batch_size": 64},
}
MOMENTUM = {"server_optimizer": {"name": "momentum", "beta1": 0.9, "learning_rate": 1.0}}
ADAM = {"server_optimizer": {"name": "adam", "learning_rate": 0.003}}
# Beta 0.9 makes the steady step ten times the pseudo-gradient; 0.5 makes it twice.
GENTLE = {"server_optimizer": {"name": "momentum", "beta1": 0.5, "learning_rate": 1.0}}
PRODUCTS = {"fuse": {"rule": "circuit"}}
PREA = {"model": {"adapter": {"group": "C4"}}}
# What stays at home must not be matched elsewhere: the site moves its own model, heads and all.
AT_SITE = {"match": {"where": "site"}}
EVERY_SITE_ONCE = {"fuse": {"rule": "uniform_soup"}}
OWN_PRIOR = {"personal": {"class_prior": "own"}}
OWN_HEAD = {"personal": {"keep_local": ["head"]}}
OWN_NORMS = {"personal": {"keep_local": ["norm"]}}
OWN_HEAD_AND_NORMS = {"personal": {"keep_local": ["head", "norm"]}}


def case(strategy: str, epochs: int, *changes: dict[str, Any]) -> dict[str, Any]:
    """Return one run: a strategy, its local epochs a round, and what else differs; the epochs in all are the same."""
    described = overlay(BASE, {"strategy": strategy, "rounds": TOTAL_EPOCHS // epochs, "local": {"epochs": epochs}})
    for change in changes:
        described = overlay(described, change)
    return described


RULES = (
    "fedavg", "circuit", "adaptive-circuit", "uniform-soup", "greedy-soup", "opm", "opm-soup", "opm-greedy-soup",
    "regmean", "opm-regmean", "opm-learned", "opm-gated", "git-rebasin", "git-rebasin-activations", "ot-fusion",
    "ot-fusion-soft", "fedma", "best-single",
)  # fmt: skip
# Rules that differ in rounds of 1 and 5 epochs: there Git Re-Basin by weights, hard OT-Fusion, OPM's soups and learned
# maps match nothing and are plain averages, greedy OPM-Soup is the greedy soup and RegMean the aligned one (last table,
# 5 x 4).
CROSSING = (
    "fedavg", "circuit", "opm", "opm-regmean", "uniform-soup", "greedy-soup", "git-rebasin-activations",
    "ot-fusion-soft", "fedma", "opm-gated", "best-single",
)  # fmt: skip
REFERENCES = {
    "pooled": case("pooled", 5),
    "best single site": case("best-single", 20),
    "every site its own model": case("local", 5),
}
LENGTHS = {
    f"{rule} {epochs} x {TOTAL_EPOCHS // epochs}": case(rule, epochs)
    for epochs, rules in ((1, CROSSING), (20, RULES))
    for rule in rules
}
CROSSED = {
    f"{rule} + {name}": case(rule, 1, change)
    for rule in CROSSING
    for name, change in {"momentum": MOMENTUM, "adam": ADAM}.items()
} | {
    f"{rule} + {objective}": case(rule, 5, {"local": {"objective": objective}})
    for rule in CROSSING
    for objective in ("proximal", "control_variates")
}
# Reasoned attempts at the gap; attempts.py says why each was made.
ATTEMPTS = {
    "PREA: fedavg": case("fedavg", 5, PREA),
    "PREA: opm": case("opm", 5, PREA),
    "PREA: pooled": case("pooled", 5, PREA),
    "head stays local: fedavg": case("fedavg", 5, OWN_HEAD),
    "head stays local: opm": case("opm", 5, OWN_HEAD, AT_SITE),
    "products always: opm 1 x 20": case("opm", 1, PRODUCTS),
    "products always: opm 5 x 4": case("opm", 5, PRODUCTS),
    "products always: opm 20 x 1": case("opm", 20, PRODUCTS),
    "products always, gentle momentum: opm": case("opm", 1, GENTLE, PRODUCTS),
    "products always, momentum: opm": case("opm", 1, MOMENTUM, PRODUCTS),
    "gate every round: opm-gated": case("opm-gated", 1),
    "gentle momentum: fedavg": case("fedavg", 1, GENTLE),
    "gentle momentum: opm": case("opm", 1, GENTLE),
    "gentle momentum: opm-regmean": case("opm-regmean", 1, GENTLE),
    "every site once: opm-soup": case("opm-soup", 1, EVERY_SITE_ONCE),
    "calibrated: fedavg": case("fedavg", 5, {"local": {"objective": "calibrated"}}),
    "calibrated: opm": case("opm", 5, {"local": {"objective": "calibrated"}}),
    "calibrated, each epoch: opm": case("opm", 1, {"local": {"objective": "calibrated"}}),
    "own class mix: fedavg": case("fedavg", 5, OWN_PRIOR),
    "own class mix: opm": case("opm", 5, OWN_PRIOR),
    "own class mix, each epoch: fedavg": case("fedavg", 1, OWN_PRIOR),
    "own class mix, each epoch: opm": case("opm", 1, OWN_PRIOR),
    "own class mix + gentle momentum: opm": case("opm", 1, OWN_PRIOR, GENTLE),
    "own class mix: pooled": case("pooled", 5, OWN_PRIOR),
    "control variates, each epoch: opm": case("opm", 1, {"local": {"objective": "control_variates"}}),
    "head stays local, each epoch: fedavg": case("fedavg", 1, OWN_HEAD),
    "head stays local, each epoch: opm": case("opm", 1, OWN_HEAD, AT_SITE),
    "norms stay local, each epoch: opm": case("opm", 1, OWN_NORMS, AT_SITE),
    "head and norms stay local, each epoch: opm": case("opm", 1, OWN_HEAD_AND_NORMS, AT_SITE),
    "head stays local + gentle momentum: opm": case("opm", 1, OWN_HEAD, AT_SITE, GENTLE),
}
PLAIN = {f"{rule} 5 x 4": case(rule, 5) for rule in RULES}
GROUPS = {
    "References": REFERENCES,
    "Every rule, 4 rounds of 5 local epochs": PLAIN,
    "1 and 20 local epochs": LENGTHS,
    "Crossed with server optimisers (1 x 20) and local objectives (5 x 4)": CROSSED,
    "Attempts at the gap": ATTEMPTS,
}
CASES = {name: described for group in GROUPS.values() for name, described in group.items()}

"""The register of sites as a run reads it: which node is which site, whose key was revoked, who is left out."""

from __future__ import annotations

import json
from pathlib import Path

from popmi_core.errors import RunError
from popmi_core.protocol import RunPlan

REVOKED = "revoked"
EXCLUDED = "excluded by the operator: {}"
"""Why a site that is left out takes no part, as the record and the pages say it."""


def read_register(plan: RunPlan) -> dict[str, int | None]:
    """Return the node of every site that has a key, None for a revoked one; empty in a simulation.

    Raises:
        RunError: If the register of sites cannot be read.
    """
    return _read(plan)[0]


def read_excluded(plan: RunPlan) -> dict[str, str]:
    """Return the sites that the operator leaves out of rounds and why; their keys stay good. Empty in a simulation.

    Raises:
        RunError: If the register of sites cannot be read.
    """
    return _read(plan)[1]


def _read(plan: RunPlan) -> tuple[dict[str, int | None], dict[str, str]]:
    if plan.sites_file is None:
        return {}, {}
    path = Path(plan.sites_file)
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        nodes = {
            site: None if item["state"] == REVOKED else int(item["node_id"])
            for site, item in told.items()
            if item["state"] == REVOKED or item.get("node_id") is not None
        }
        # A revoked site is out for good, which says more.
        out = {
            site: EXCLUDED.format(item["excluded"]["reason"])
            for site, item in told.items()
            if item.get("excluded") is not None and item["state"] != REVOKED
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"the register of sites {path} cannot be read ({type(error).__name__}). Restore it from the back-up."
        ) from error
    return nodes, out


def cut_off(plan: RunPlan, nodes: dict[str, int]) -> list[str]:
    """Return those of the sites (node by name) whose key was revoked, also where the site has a new one since.

    Raises:
        RunError: If the register of sites cannot be read.
    """
    if plan.sites_file is None:
        return []
    register = read_register(plan)
    return sorted(site for site, node in nodes.items() if register.get(site) != node)

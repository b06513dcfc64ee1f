"""Find out which hospital this node is, and read its images once per process."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from flwr.app import Context

from popmi_core.data import ImageSet, SiteData, load_site
from popmi_core.errors import ConfigError
from popmi_core.protocol import Assignment, Instruction


def assignment_of(context: Context, instruction: Instruction) -> Assignment:
    """Return the site this node plays: its own node configuration first, else its number in the lineup.

    Raises:
        ConfigError: If the node is neither configured nor in the lineup.
    """
    node = context.node_config
    if "site" in node:
        data = str(node.get("data", ""))
        if not data:
            raise ConfigError(
                f"site {node['site']}: node configuration has no 'data'. Start the node with the data folder."
            )
        return Assignment(
            site=str(node["site"]), data=tuple(data.split("\n")), state=str(node.get("state", "popmi-state"))
        )
    number = node.get("partition-id")
    if isinstance(number, int) and 0 <= number < len(instruction.lineup):
        return instruction.lineup[number]
    raise ConfigError("this node has neither a 'site' nor a place in the lineup. Start it with a node configuration.")


def read_data(assignment: Assignment, instruction: Instruction) -> SiteData:
    """Return the site's images and labels, several specifications pooled into one set."""
    parts = [
        _read_once(
            assignment.site if len(assignment.data) == 1 else Path(spec.removeprefix("phantom:")).name,
            spec,
            instruction.model.image_size,
            instruction.phantom_images,
            instruction.seed,
            instruction.classes,
        )
        for spec in assignment.data
    ]
    return parts[0] if len(parts) == 1 else _pool(assignment.site, parts)


# Sites come in turn: one site more than there is room for, and every round would read every image again.
@lru_cache(maxsize=256)
def _read_once(
    site: str, spec: str, image_size: int, phantom_images: int, seed: int, classes: tuple[str, ...]
) -> SiteData:
    data = load_site(
        site,
        spec,
        image_size=image_size,
        phantom_images=phantom_images,
        seed=seed,
        classes=classes,
        to_train=True,
    )
    if data.classes != classes:
        raise ConfigError(
            # How many, not which: they may be the site's own words.
            f"site {site}: its data set names {len(data.classes)} classes, which are not the run's in the run's order "
            f"({', '.join(classes)}). Map the site's labels to the project's list."
        )
    return data


def _pool(site: str, parts: list[SiteData]) -> SiteData:
    def join(sets: list[ImageSet]) -> ImageSet:
        return ImageSet(
            images=np.concatenate([part.images for part in sets]),
            targets=np.concatenate([part.targets for part in sets]),
        )

    return SiteData(
        site=site,
        classes=parts[0].classes,
        train=join([part.train for part in parts]),
        val=join([part.val for part in parts]),
        test=join([part.test for part in parts]),
        external=join([part.external for part in parts]),
        skipped=tuple(row for part in parts for row in part.skipped),
        phantom=any(part.phantom for part in parts),
    )

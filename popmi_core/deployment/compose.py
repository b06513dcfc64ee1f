"""What `docker compose up` must be told of a prepared data set: its classes, and each site's name and folder."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from popmi_core.data.card import FILE_NAME, DatasetCard, read_card
from popmi_core.deployment.enrolment import SITE_NAME
from popmi_core.errors import ConfigError, DataError

MOST_SITES = 6
"""So many sites docker-compose.yml knows; the sixth takes part with ``--profile extra`` only."""
CONTAINER_USER = 10001
"""Number of the user, and of its group, that reads the images in a container (deploy/Dockerfile)."""
PLAIN = re.compile(r"[\w./,:@%+-]*")


def compose_settings(folder: Path, sites: Sequence[str] = ()) -> dict[str, str]:
    """Return the variables of docker-compose.yml for a prepared data set: CLASSES, SITE_1, SITE_1_DATA and so on.

    Args:
        folder: Prepared data set, with dataset.json. Its external test set is left out: no site trains on it.
        sites: Which of its sites, in this order; all by name where empty.

    Raises:
        ConfigError: If ``sites`` names an unknown site or one twice, or there are more than docker-compose.yml knows.
        DataError: If there is no such data set, a site's or class's name does not fit, or containers cannot read it.
    """
    card = _card(folder)
    chosen = list(sites) or sorted(card.sites)
    unknown = [site for site in chosen if site not in card.sites]
    if unknown or len(set(chosen)) != len(chosen):
        raise ConfigError(
            f"sites {', '.join(chosen)}: unknown or repeated: {', '.join(unknown) or 'a name twice'}. {folder} has "
            f"{', '.join(sorted(card.sites))}."
        )
    if len(chosen) > MOST_SITES:
        raise ConfigError(
            f"{folder}: {len(chosen)} sites, expected at most {MOST_SITES}, as many as docker-compose.yml knows. "
            f"Choose, e.g. --sites {','.join(chosen[:MOST_SITES])}."
        )
    _check_names(folder, card, chosen)
    told = {"CLASSES": ",".join(card.classes)}
    for number, site in enumerate(chosen, 1):
        _check_readable(site, (folder / site).resolve())
        told |= {f"SITE_{number}": site, f"SITE_{number}_DATA": str((folder / site).resolve())}
    return told


def env_lines(settings: Mapping[str, str]) -> list[str]:
    """Return lines for the file ``.env`` that compose reads; what it would take for syntax is quoted."""
    quoted = {name: value.replace("'", "\\'") for name, value in settings.items()}
    return [
        f"{name}={value}" if PLAIN.fullmatch(value) else f"{name}='{quoted[name]}'" for name, value in settings.items()
    ]


def _card(folder: Path) -> DatasetCard:
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder, expected a prepared data set. Check the path.")
    if not (folder / FILE_NAME).is_file():
        raise DataError(
            f"{folder} has no {FILE_NAME}, expected a prepared data set. Make one with `popmi data prepare` or `popmi "
            "data split`, or write the lines yourself (docs/compose.md, Your own images)."
        )
    try:
        return read_card(folder)
    except PermissionError as error:
        raise DataError(f"{error.filename}: you may not read it yourself. {_remedy(folder)}") from error


def _check_names(folder: Path, card: DatasetCard, sites: Sequence[str]) -> None:
    for site in sites:
        if not re.fullmatch(SITE_NAME, site):
            raise DataError(
                f"{folder}: site name {site!r}, expected lower-case letters, digits, dot, dash and underline, at most "
                f"63, beginning with a letter or digit. Rename its folder, and the site in {FILE_NAME}."
            )
    for name in card.classes:
        if "," in name:
            raise DataError(
                f"{folder}: class {name!r}, expected no comma: it stands between classes. Rename it with a label map "
                "(docs/data.md) and prepare the data set again."
            )


def _check_readable(site: str, folder: Path) -> None:
    shut = 0
    for root, _, files in os.walk(folder):
        shut += not _readable(Path(root))
        shut += sum(not _readable(Path(root, file)) for file in files)
    if shut:
        raise DataError(
            f"site {site}: user {CONTAINER_USER}, as whom containers run, cannot read {shut} of the folders and files "
            f"in {folder}, expected all. {_remedy(folder)}"
        )


def _readable(path: Path) -> bool:
    """Return whether the containers' user may read a file, or read and enter a folder; by mode bits, root or not."""
    try:
        found = path.stat()
    except OSError:
        return False
    shift = 6 if found.st_uid == CONTAINER_USER else 3 if found.st_gid == CONTAINER_USER else 0
    needed = 0o5 if stat.S_ISDIR(found.st_mode) else 0o4
    return (found.st_mode >> shift) & needed == needed


def _remedy(folder: Path) -> str:
    return f"chmod -R a+rX {folder}"

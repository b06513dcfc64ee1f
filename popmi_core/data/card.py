"""``dataset.json``: what a prepared data set is, where it came from and under which licence."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from popmi_core.errors import DataError

FILE_NAME = "dataset.json"


class DatasetCard(BaseModel):
    """The description beside a prepared data set's site folders.

    Attributes:
        name: Short name, e.g. ``dermoscopy``.
        classes: In the order of the model's outputs.
        image_size: Pixels per side of the stored pictures.
        source_image_size: Pixels per side of the smallest source; asking for more than that only enlarges.
        sites: Folder names of the sites that train.
        external: Folder name of a test set no site trains on, or None.
        recipe: How the pictures were made, with a version.
        source_sha256: Checksums of the files it was made from.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    classes: tuple[str, ...] = Field(min_length=2)
    image_size: int = Field(ge=1)
    source_image_size: int = Field(ge=1)
    sites: tuple[str, ...] = Field(min_length=1)
    external: str | None = None
    licence: str
    citation: tuple[str, ...] = ()
    recipe: str
    source_sha256: dict[str, str] = Field(default_factory=dict)


def read_card(root: Path) -> DatasetCard:
    """Read ``root/dataset.json``.

    Raises:
        DataError: If it is missing, damaged, or names a folder that is not there.
    """
    try:
        card = DatasetCard.model_validate_json((root / FILE_NAME).read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{error.error_count()} field(s) do not fit"
        raise DataError(f"{root / FILE_NAME} cannot be used: {reason}. Prepare the data set again.") from None
    named = [*card.sites, *([card.external] if card.external else [])]
    gone = [site for site in named if Path(site).name != site or not (root / site / "labels.csv").is_file()]
    if gone:
        raise DataError(
            f"{root / FILE_NAME} names {', '.join(map(repr, gone))}, but there is no such folder with a labels.csv. "
            "Prepare the data set again."
        )
    return card


def classes_above(folder: Path) -> tuple[str, ...] | None:
    """Return the study's classes where ``folder`` is a site of a prepared data set, else None.

    Raises:
        DataError: As ``read_card``, without the folder's name, because a site's errors may travel to the server.
    """
    if not (folder.parent / FILE_NAME).is_file():
        return None
    try:
        return read_card(folder.parent).classes
    except DataError as error:
        raise DataError(str(error).replace(f"{folder.parent}/", "above the site's folder, ")) from None


def write_card(root: Path, card: DatasetCard) -> None:
    """Write ``root/dataset.json``."""
    (root / FILE_NAME).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")

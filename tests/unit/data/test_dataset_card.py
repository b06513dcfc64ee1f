"""dataset.json."""

from __future__ import annotations

from pathlib import Path

import pytest

from popmi_core.data.card import DatasetCard, classes_above, read_card, write_card
from popmi_core.errors import DataError

CARD = DatasetCard(
    name="skin",
    classes=("a", "b"),
    image_size=8,
    source_image_size=8,
    sites=("north",),
    licence="CC0",
    recipe="test-1",
)


def _site(root: Path, name: str = "north") -> Path:
    (root / name).mkdir()
    (root / name / "labels.csv").write_text("image,diagnosis\n")
    return root / name


def test_a_card_survives_being_written(tmp_path: Path) -> None:
    site = _site(tmp_path)
    write_card(tmp_path, CARD)

    assert read_card(tmp_path) == CARD
    assert classes_above(site) == ("a", "b")


def test_a_folder_without_a_card_above_has_no_classes(tmp_path: Path) -> None:
    assert classes_above(_site(tmp_path)) is None


def test_a_missing_or_damaged_card_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset.json cannot be used: No such file"):
        read_card(tmp_path)
    (tmp_path / "dataset.json").write_text('{"name": "skin"}')
    with pytest.raises(DataError, match=r"dataset.json cannot be used: \d field\(s\) do not fit"):
        read_card(tmp_path)


@pytest.mark.parametrize("site", ["south", "../north", "/etc"])
def test_a_card_that_names_another_place_is_refused(tmp_path: Path, site: str) -> None:
    _site(tmp_path)
    write_card(tmp_path, CARD.model_copy(update={"sites": ("north", site)}))

    with pytest.raises(DataError, match=f"names '{site}', but there is no such folder"):
        read_card(tmp_path)

"""The in-memory image set every reader returns."""

import numpy as np
import pytest

from popmi_core.data.images import ImageSet
from popmi_core.data.labels import DERMOSCOPY_CLASSES, DERMOSCOPY_NAMES
from popmi_core.errors import DataError


def three_images() -> ImageSet:
    images = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)
    return ImageSet(images, np.array([2, 0, 2], dtype=np.int64))


def test_a_subset_keeps_images_and_targets_together() -> None:
    whole = three_images()
    part = whole.subset(np.array([2, 1]))
    assert len(part) == 2
    assert part.targets.tolist() == [2, 0]
    assert np.array_equal(part.images[0], whole.images[2])


def test_a_subset_can_be_chosen_by_flags() -> None:
    assert three_images().subset(np.array([True, False, True])).targets.tolist() == [2, 2]


def test_counts_include_classes_without_an_image() -> None:
    assert three_images().counts(4).tolist() == [1, 0, 2, 0]


def test_an_empty_set_has_a_geometry_and_no_image() -> None:
    empty = ImageSet.empty(16)
    assert len(empty) == 0
    assert empty.images.shape == (0, 16, 16, 3)
    assert empty.counts(7).tolist() == [0] * 7


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 4, 4, 3), np.float32), np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4, 1), np.uint8)],
)
def test_images_of_another_form_are_refused(images: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"uint8 images of shape \(n, height, width, 3\), got"):
        ImageSet(images, np.zeros(2, np.int64))


@pytest.mark.parametrize("targets", [np.zeros(3, np.int64), np.zeros(2, np.int32), np.zeros((2, 1), np.int64)])
def test_targets_of_another_form_are_refused(targets: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"int64 targets of shape \(2,\), got"):
        ImageSet(np.zeros((2, 4, 4, 3), np.uint8), targets)


def test_every_class_has_a_name_for_people() -> None:
    assert tuple(DERMOSCOPY_NAMES) == DERMOSCOPY_CLASSES
    assert len(set(DERMOSCOPY_NAMES.values())) == 7

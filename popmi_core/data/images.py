"""A hospital's images in memory: what every reader returns and every trainer takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from popmi_core.errors import DataError


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with their labels; row ``i`` of both belongs to one photograph.

    Attributes:
        images: ``uint8 [n, height, width, 3]``, RGB, 0 to 255.
        targets: ``int64 [n]``, an index into the site's ``classes``.

    Raises:
        DataError: If dtype or shape differ from the above, or the two lengths disagree.
    """

    images: npt.NDArray[np.uint8]
    targets: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[-1] != 3:
            raise DataError(
                f"an image set needs uint8 images of shape (n, height, width, 3), got {self.images.dtype} "
                f"{self.images.shape}. Read the images with popmi_core.data, which brings them to that form."
            )
        if self.targets.dtype != np.int64 or self.targets.shape != (len(self.images),):
            raise DataError(
                f"an image set needs int64 targets of shape ({len(self.images)},), got {self.targets.dtype} "
                f"{self.targets.shape}. Give one class index per image."
            )

    def __len__(self) -> int:
        return len(self.targets)

    def subset(self, index: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> ImageSet:
        """Return the images that ``index`` (positions, or one flag per image) chooses, in its order."""
        return ImageSet(self.images[index], self.targets[index])

    def counts(self, num_classes: int) -> npt.NDArray[np.int64]:
        """Return how many images each class has, ``int64 [num_classes]``."""
        return np.bincount(self.targets, minlength=num_classes).astype(np.int64)

    @classmethod
    def empty(cls, image_size: int) -> ImageSet:
        """Return a set without images whose geometry is ``image_size`` pixels square."""
        return cls(np.zeros((0, image_size, image_size, 3), np.uint8), np.zeros(0, np.int64))


@dataclass(frozen=True)
class SkippedRow:
    """A row of ``labels.csv`` that was left out.

    Attributes:
        row: Row number in the file, the header being 1.
        reason: Why, without any file name or patient data.
    """

    row: int
    reason: str


@dataclass(frozen=True, eq=False)
class SiteData:
    """Everything one site may train, tune and report on.

    Attributes:
        site: The site's name.
        classes: Class names; targets of all four sets index into them.
        train: Images the site trains on.
        val: Images for choices made during training.
        test: Images only ever evaluated.
        external: Images of another origin that no site trains on; may be empty.
        skipped: Rows that could not be used.
        phantom: True where the images were drawn by the phantom and show no patient.
    """

    site: str
    classes: tuple[str, ...]
    train: ImageSet
    val: ImageSet
    test: ImageSet
    external: ImageSet
    skipped: tuple[SkippedRow, ...] = ()
    phantom: bool = False

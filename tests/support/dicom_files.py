"""Small DICOM files of made-up pixels for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid


def dicom_of(
    pixels: np.ndarray, photometric: str = "MONOCHROME2", *, bits: int | None = None, **attributes: object
) -> Dataset:
    """Return a data set that holds ``pixels`` [rows, columns] or [rows, columns, 3] and names nobody."""
    depth = pixels.dtype.itemsize * 8
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=["popmi test"])
    dataset.PatientName = dataset.PatientID = ""
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated, dataset.BitsStored = depth, bits or depth
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    raw = pixels.tobytes()
    dataset.PixelData = raw + b"\0" * (len(raw) % 2)
    dataset["PixelData"].VR = "OW" if depth > 8 else "OB"
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def write_dicom(path: Path, pixels: np.ndarray, photometric: str = "MONOCHROME2", **attributes: object) -> Path:
    """Write ``dicom_of`` the same to a file."""
    dicom_of(pixels, photometric, **attributes).save_as(path, enforce_file_format=True)
    return path

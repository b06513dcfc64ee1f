"""DICOM files become the same kind of pixels as pictures."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from dicom_files import dicom_of, write_dicom
from PIL import Image
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_voi_lut, convert_color_space
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    RLELossless,
)

from popmi_core.data import decode
from popmi_core.data.decode import UnusableImage, read_image

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
DEEP = (np.arange(256, dtype=np.uint16) * 16).reshape(16, 16)  # 12 bits


def grey(path: Path, size: int = 16) -> np.ndarray:
    """Return the grey levels of a file, once all three channels are found to be alike."""
    pixels = read_image(path, image_size=size)
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels[..., 0] == pixels[..., 2]).all()
    return pixels[..., 0].astype(int)


def lut(descriptor: list[int], data: list[int] | bytes) -> list[Dataset]:
    item = Dataset()
    item.LUTDescriptor = descriptor
    item.add_new(0x00283006, "OW" if isinstance(data, bytes) else "US", data)
    return [item]


def test_eight_bits_stay_as_they_are_and_monochrome1_is_turned_around(tmp_path: Path) -> None:
    two = grey(write_dicom(tmp_path / "two.dcm", RAMP))
    one = grey(write_dicom(tmp_path / "one.dcm", RAMP, "MONOCHROME1"))
    dark = grey(write_dicom(tmp_path / "dark.dcm", RAMP // 4))

    np.testing.assert_array_equal(two, RAMP)
    np.testing.assert_array_equal(one, 255 - RAMP.astype(int))
    # A dark picture stays dark: eight bits are not stretched.
    np.testing.assert_array_equal(dark, RAMP // 4)


def test_deeper_images_without_a_window_are_stretched_over_what_they_hold_padding_left_out(tmp_path: Path) -> None:
    plain = grey(write_dicom(tmp_path / "a.dcm", DEEP + 100, bits=13))
    padded = DEEP.copy()
    padded[0, 0] = 65535
    edged = grey(write_dicom(tmp_path / "b.dcm", padded, PixelPaddingValue=65535))
    flat = grey(write_dicom(tmp_path / "c.dcm", np.full((16, 16), 7, np.uint16)))

    np.testing.assert_array_equal(plain, np.arange(256).reshape(16, 16))  # 16 v over 16 * 255, times 255
    # The smallest and the largest of the rest are 16 and 4080.
    np.testing.assert_array_equal(edged[1:], np.rint((DEEP[1:] - 16.0) / 4064 * 255))
    assert (flat == 0).all()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_window_is_followed_as_pydicom_follows_it(tmp_path: Path, function: str, photometric: str) -> None:
    signed = (DEEP.astype(np.int16) - 2048).astype(np.int16)
    told = {"WindowCenter": [40, 999], "WindowWidth": [400, 9], "VOILUTFunction": function}
    told |= {"RescaleSlope": 0.5, "RescaleIntercept": -100}
    path = write_dicom(tmp_path / "a.dcm", signed, photometric, bits=12, **told)

    seen = grey(path)

    # pydicom scales the window's output onto the range of rescaled values: -2048..2047 halved, less 100.
    theirs = apply_voi_lut(signed * 0.5 - 100, dicom_of(signed, bits=12, **told))
    levels = (theirs - (-1124)) / (923.5 - (-1124))
    expected = np.rint(255 * (1 - levels if photometric == "MONOCHROME1" else levels))
    assert np.abs(seen - expected).max() <= 1  # two orders of the same sums, rounded


def test_windows_have_the_values_of_the_standards_own_formulas(tmp_path: Path) -> None:
    told = {"WindowCenter": 128, "WindowWidth": 101}
    linear = grey(write_dicom(tmp_path / "a.dcm", RAMP, **told))
    exact = grey(write_dicom(tmp_path / "b.dcm", RAMP, VOILUTFunction="LINEAR_EXACT", **told))
    sigmoid = grey(write_dicom(tmp_path / "c.dcm", RAMP, VOILUTFunction="SIGMOID", **told))
    threshold = grey(write_dicom(tmp_path / "d.dcm", RAMP, WindowCenter=128, WindowWidth=1))

    at = [divmod(value, 16) for value in (77, 78, 100, 128, 177, 178)]
    assert [linear[place] for place in at] == [0, 1, 57, 129, 254, 255]  # ((x - 127.5) / 100 + 0.5) * 255
    assert [exact[place] for place in at] == [0, 1, 57, 128, 251, 254]  # ((x - 128) / 101 + 0.5) * 255
    assert [sigmoid[place] for place in at] == [30, 31, 63, 128, 223, 224]  # 255 / (1 + exp(-4 (x - 128) / 101))
    assert (threshold == np.where(RAMP >= 128, 255, 0)).all()


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"WindowWidth": 0.5}, "DICOM window is too narrow for its function"),
        ({"WindowWidth": 0, "VOILUTFunction": "SIGMOID"}, "DICOM window is too narrow for its function"),
        ({"WindowWidth": 5, "VOILUTFunction": "CUBIC"}, "window function is none of LINEAR, LINEAR_EXACT, SIGMOID"),
    ],
)
def test_a_window_that_the_standard_does_not_know_is_refused(
    tmp_path: Path, told: dict[str, object], reason: str
) -> None:
    with pytest.raises(UnusableImage, match=reason):
        read_image(write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=10, **told), image_size=16)


def test_signed_values_and_bits_beside_the_stored_ones(tmp_path: Path) -> None:
    values = np.arange(-2048, 2048, 16, dtype=np.int16).reshape(16, 16)
    # Twelve bits, moved up by four, with an overlay in the lowest bit.
    packed = ((values.astype(np.int32) & 0xFFF) << 4 | 1).astype(np.uint16)
    dataset = dicom_of(packed, bits=12, WindowCenter=0, WindowWidth=4096, VOILUTFunction="LINEAR_EXACT")
    dataset.PixelRepresentation, dataset.HighBit = 1, 15
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    eight = write_dicom(tmp_path / "b.dcm", (values // 16).astype(np.int8))

    np.testing.assert_array_equal(grey(tmp_path / "a.dcm"), np.rint((values / 4096 + 0.5) * 255))
    np.testing.assert_array_equal(grey(eight), values // 16 + 128)


def test_run_lengths_hold_bits_where_the_file_says(tmp_path: Path) -> None:
    dataset = dicom_of((DEEP << 4).astype(np.uint16), bits=12, WindowCenter=2048, WindowWidth=4096)
    dataset.HighBit = 15
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)

    np.testing.assert_array_equal(grey(tmp_path / "a.dcm"), np.rint((DEEP - 2047.5) / 4095 * 255 + 127.5))


def test_rescaling_with_a_negative_slope_turns_the_grey_levels_around(tmp_path: Path) -> None:
    turned = write_dicom(tmp_path / "a.dcm", RAMP, RescaleSlope=-1, RescaleIntercept=0)
    windowed = write_dicom(tmp_path / "b.dcm", RAMP, RescaleSlope=-2, RescaleIntercept=510, WindowCenter=255.5,
                           WindowWidth=511)  # fmt: skip

    np.testing.assert_array_equal(grey(turned), 255 - RAMP.astype(int))
    np.testing.assert_array_equal(grey(windowed), 255 - RAMP.astype(int))


def test_lookup_tables_map_values_beyond_their_ends_onto_the_ends(tmp_path: Path) -> None:
    # 300 entries of 8 bits: an index of 8 bits would wrap around at 256.
    table = [min(255, number) for number in range(300)]
    voi = write_dicom(tmp_path / "a.dcm", DEEP, bits=12, VOILUTSequence=lut([300, 100, 8], table))
    packed = bytes(table)
    same = write_dicom(tmp_path / "b.dcm", DEEP, bits=12, VOILUTSequence=lut([300, 100, 8], packed))
    words = np.array([0, 4095, 65535], "<u2").tobytes()
    modality = write_dicom(tmp_path / "c.dcm", RAMP, ModalityLUTSequence=lut([3, 1, 16], words))

    expected = np.array(table)[np.clip(DEEP.astype(int) - 100, 0, 299)]
    np.testing.assert_array_equal(grey(voi), expected)
    np.testing.assert_array_equal(grey(same), expected)
    assert grey(modality)[0, :5].tolist() == [0, 0, 16, 255, 255]


@pytest.mark.parametrize("descriptor", [[9, 0, 8], [3, 0, 32]])
def test_a_lookup_table_that_is_not_what_it_says_is_refused(tmp_path: Path, descriptor: list[int]) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP, ModalityLUTSequence=lut(descriptor, [1, 2, 3]))

    with pytest.raises(UnusableImage, match="DICOM lookup table is not what its descriptor says"):
        read_image(path, image_size=16)


def test_colours_come_through_by_pixel_and_by_plane(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    planes = dicom_of(rgb, "RGB", PlanarConfiguration=1, PixelData=rgb.transpose(2, 0, 1).tobytes())
    planes.save_as(tmp_path / "planes.dcm", enforce_file_format=True)
    deep = write_dicom(tmp_path / "deep.dcm", rgb.astype(np.uint16) * 257, "RGB")

    for path in (write_dicom(tmp_path / "pixels.dcm", rgb, "RGB"), tmp_path / "planes.dcm", deep):
        np.testing.assert_array_equal(read_image(path, image_size=16), rgb)


def test_brightness_and_colour_difference_become_red_green_and_blue(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    full = convert_color_space(rgb, "RGB", "YBR_FULL")
    # Two pixels share one pair of colour differences: Y1 Y2 Cb Cr.
    halved = np.stack([full[:, ::2, 0], full[:, 1::2, 0], full[:, ::2, 1], full[:, ::2, 2]], axis=-1)
    shared = dicom_of(full, "YBR_FULL_422", PixelData=halved.tobytes())
    shared.save_as(tmp_path / "shared.dcm", enforce_file_format=True)

    seen = read_image(write_dicom(tmp_path / "full.dcm", full, "YBR_FULL"), image_size=16)
    pairs = read_image(tmp_path / "shared.dcm", image_size=16)

    # R = Y + 1.402 (Cr - 128), G = Y - 0.344136 (Cb - 128) - 0.714136 (Cr - 128), B = Y + 1.772 (Cb - 128).
    y, cb, cr = (full[..., place].astype(float) - (place > 0) * 128 for place in range(3))
    by_hand = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    assert np.abs(seen - np.clip(np.rint(by_hand), 0, 255)).max() <= 1  # rounding halves
    assert np.abs(pairs[:, ::2].astype(int) - seen[:, ::2]).max() == 0


def test_a_palette_is_looked_up_and_odd_numbers_of_bytes_are_no_trouble(tmp_path: Path) -> None:
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16) % 3
    tables = {"Red": bytes([255, 0, 9, 0]), "Green": bytes([0, 255, 8, 0]), "Blue": bytes([1, 2, 7, 0])}
    told: dict[str, object] = {f"{colour}PaletteColorLookupTableDescriptor": [3, 0, 8] for colour in tables}
    told |= {f"{colour}PaletteColorLookupTableData": data for colour, data in tables.items()}
    path = write_dicom(tmp_path / "a.dcm", stored, "PALETTE COLOR", **told)

    seen = read_image(path, image_size=16)

    assert seen[0, :3].tolist() == [[255, 0, 1], [0, 255, 2], [9, 8, 7]]


def test_a_palette_in_segments_is_unfolded(tmp_path: Path) -> None:
    # One discrete segment of two entries, then a linear one of two up to 65535.
    segments = np.array([0, 2, 0, 1000, 1, 2, 65535], "<u2").tobytes()
    told: dict[str, object] = {}
    for colour in ("Red", "Green", "Blue"):
        told[f"{colour}PaletteColorLookupTableDescriptor"] = [4, 0, 16]
        told[f"Segmented{colour}PaletteColorLookupTableData"] = segments
    path = write_dicom(tmp_path / "a.dcm", RAMP % 4, "PALETTE COLOR", **told)

    assert grey(path)[0, :4].tolist() == [0, 4, 129, 255]  # 0, 1000, halfway, 65535 over 257


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless]
)
def test_encodings_that_need_no_codec_give_the_same_pixels(tmp_path: Path, syntax: str) -> None:
    dataset = dicom_of(DEEP, bits=12, WindowCenter=2048, WindowWidth=4096)
    if syntax == RLELossless:
        dataset.compress(RLELossless, generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian:
        dataset.PixelData = DEEP.astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)

    np.testing.assert_array_equal(grey(tmp_path / "a.dcm"), np.rint((DEEP - 2047.5) / 4095 * 255 + 127.5))


def test_the_central_square_is_kept_as_of_a_picture(tmp_path: Path) -> None:
    wide = np.broadcast_to(np.arange(30, dtype=np.uint8) * 8, (20, 30)).copy()
    Image.fromarray(wide).save(tmp_path / "a.png")
    # Pixels of different height and width are shown one by one, as those of a picture are.
    path = write_dicom(tmp_path / "a.dcm", wide, PixelSpacing=[0.1, 0.4])

    np.testing.assert_array_equal(read_image(path, image_size=10), read_image(tmp_path / "a.png", image_size=10))


def test_what_cannot_be_used_says_why_with_the_transfer_syntax_and_never_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(name: str, dataset: Dataset) -> None:
        dataset.PatientName = "Meier^Anna"
        dataset.save_as(tmp_path / name, enforce_file_format=True)

    save("frames.dcm", dicom_of(np.stack([RAMP, RAMP]).reshape(32, 16), Rows=16, NumberOfFrames=2))
    lossless = dicom_of(RAMP, PixelData=encapsulate([b"\xff\xd8anna\xff\xd9"]))
    lossless.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    save("lossless.dcm", lossless)
    broken = dicom_of(RAMP, PixelData=encapsulate([b"\0" * 64]))
    broken.file_meta.TransferSyntaxUID = RLELossless
    save("broken.dcm", broken)
    empty = dicom_of(RAMP)
    del empty.PixelData
    save("empty.dcm", empty)
    save("hsv.dcm", dicom_of(RAMP, "HSV"))
    save("two.dcm", dicom_of(RAMP, "RGB", SamplesPerPixel=1))
    unknown = dicom_of(RAMP)
    save("unknown.dcm", unknown)
    raw = (tmp_path / "unknown.dcm").read_bytes()
    (tmp_path / "unknown.dcm").write_bytes(raw.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0"))
    (tmp_path / "cut.dcm").write_bytes(raw[:-40])
    (tmp_path / "head.dcm").write_bytes(raw[:140])
    zipped = dicom_of(RAMP)
    zipped.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    save("zipped.dcm", zipped)
    (tmp_path / "zipped.dcm").write_bytes((tmp_path / "zipped.dcm").read_bytes()[:-60] + b"\xff" * 60)
    (tmp_path / "noted.dcm").write_text("Meier, Anna")
    write_dicom(tmp_path / "large.dcm", np.zeros((40, 40), np.uint8))
    write_dicom(tmp_path / "askew.dcm", RAMP, ImageRotation=45)
    monkeypatch.setattr(decode, "MAX_PIXELS", 1000)

    little = r"transfer syntax Explicit VR Little Endian \(1\.2\.840\.10008\.1\.2\.1\)"
    for name, reason in (
        ("gone.dcm", "image file is missing"),
        ("frames.dcm", rf"DICOM has 2 frames, expected one \({little}\)"),
        ("lossless.dcm", r"cannot be decoded here: transfer syntax JPEG Lossless.*\(1\.2\.840\.10008\.1\.2\.4\.70\)"),
        ("broken.dcm", r"transfer syntax RLE Lossless \(1\.2\.840\.10008\.1\.2\.5\)"),
        ("empty.dcm", rf"DICOM holds no pixel data \({little}\)"),
        ("hsv.dcm", rf"photometric interpretation is not supported \({little}\)"),
        ("two.dcm", rf"has not three samples a pixel \({little}\)"),
        ("unknown.dcm", r"cannot be decoded here: transfer syntax 1\.2\.840\.10008\.1\.2\.9"),
        ("cut.dcm", rf"DICOM cannot be decoded \(ValueError, {little}\)"),
        ("head.dcm", r"DICOM holds no pixel data \(no transfer syntax\)"),
        ("zipped.dcm", r"DICOM header is damaged \(error\)"),
        ("noted.dcm", "DICOM name but no DICOM mark"),
        ("large.dcm", "million pixels"),
        ("askew.dcm", "DICOM image rotation is no multiple of 90 degrees"),
    ):
        with pytest.raises(UnusableImage, match=reason) as caught:
            read_image(tmp_path / name, image_size=8)
        assert "anna" not in str(caught.value).lower()
        assert name not in str(caught.value)


def test_a_damaged_file_warns_of_no_value_it_holds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP, PatientAge="012Y")
    path.write_bytes(path.read_bytes().replace(b"012Y", b"Anna"))

    with warnings.catch_warnings(record=True) as told:
        read_image(path, image_size=16)

    assert [str(warning.message) for warning in told] == []
    assert "Anna" not in caplog.text + capsys.readouterr().err


def test_without_pydicom_the_way_out_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)

    with pytest.raises(UnusableImage, match=r"DICOM cannot be read here: install pydicom"):
        read_image(path, image_size=16)

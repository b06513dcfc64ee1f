"""One geometry for every picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from popmi_core.data import decode
from popmi_core.data.decode import UnusableImage, encode_png, read_image, resize_stack


def _gradient(width: int, height: int) -> Image.Image:
    across = np.broadcast_to(np.linspace(0, 255, width)[None, :], (height, width))
    down = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return Image.fromarray(np.stack([across, down, np.full_like(across, 128)], -1).astype(np.uint8))


def test_the_central_square_is_kept_and_reduced(tmp_path: Path) -> None:
    _gradient(90, 60).save(tmp_path / "a.png")

    pixels = read_image(tmp_path / "a.png", image_size=20)

    assert (pixels.shape, pixels.dtype) == ((20, 20, 3), np.uint8)
    # Columns 15 to 75 of 90 remain: red runs from 1/6 to 5/6 of 255; half a step of 3 columns at each end.
    assert pixels[10, 0, 0] == pytest.approx(255 / 6, abs=6)
    assert pixels[10, -1, 0] == pytest.approx(255 * 5 / 6, abs=6)


def test_reduction_is_antialiased(tmp_path: Path) -> None:
    # A one-pixel checkerboard must become grey; taking every eighth pixel would give black or white.
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "a.png")

    pixels = read_image(tmp_path / "a.png", image_size=8)

    assert np.abs(pixels.astype(int) - 127).max() <= 3  # rounding at the rim, where the filter is cut off


def test_a_large_jpeg_read_at_its_built_in_scale_looks_the_same(tmp_path: Path) -> None:
    picture = _gradient(960, 960)
    picture.save(tmp_path / "a.jpg", quality=95)

    fast = read_image(tmp_path / "a.jpg", image_size=32)

    exact = np.asarray(picture.resize((32, 32), Image.Resampling.BILINEAR))
    assert np.abs(fast.astype(int) - exact).max() <= 4  # JPEG loss and another order of averaging


def test_a_camera_s_turn_mark_is_followed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to view
    _gradient(40, 40).save(tmp_path / "a.jpg", exif=exif, quality=95)

    pixels = read_image(tmp_path / "a.jpg", image_size=40)

    # Red ran to the right; turned clockwise it runs downwards.
    assert pixels[-1, 20, 0] > 200 > 60 > pixels[0, 20, 0]


def test_grey_and_palette_pictures_become_rgb(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 77).save(tmp_path / "grey.png")
    Image.new("RGB", (8, 8), (1, 2, 3)).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")

    assert read_image(tmp_path / "grey.png", image_size=8)[0, 0].tolist() == [77, 77, 77]
    assert read_image(tmp_path / "palette.png", image_size=8)[0, 0].tolist() == [1, 2, 3]


def test_pictures_in_memory_get_the_geometry_of_files(tmp_path: Path) -> None:
    picture = _gradient(30, 20)
    picture.save(tmp_path / "a.png")

    stack = resize_stack(np.asarray(picture)[None], image_size=10)

    np.testing.assert_array_equal(stack[0], read_image(tmp_path / "a.png", image_size=10))


def test_a_png_holds_the_very_pixels_and_is_the_same_every_time(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(encode_png(pixels))

    np.testing.assert_array_equal(read_image(tmp_path / "a.png", image_size=16), pixels)
    assert encode_png(pixels) == encode_png(pixels.copy())


def test_what_cannot_be_used_says_why_and_never_which_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.new("RGB", (8, 8), (red, 0, 0)) for red in (0, 255)]
    frames[0].save(tmp_path / "anna.tif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "anna.tiff")
    (tmp_path / "anna.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.new("RGB", (40, 40)).save(tmp_path / "anna.bmp")
    monkeypatch.setattr(decode, "MAX_PIXELS", 1000)

    for name, reason in (
        ("anna.gone", "image file is missing"),
        ("anna.tif", "more than one frame"),
        ("anna.tiff", "more than 8 bits per channel"),
        ("anna.png", "cannot be decoded"),
        ("anna.bmp", "million pixels"),
    ):
        with pytest.raises(UnusableImage, match=reason) as caught:
            read_image(tmp_path / name, image_size=8)
        assert "anna" not in str(caught.value)

"""Random views: which elements of D4 occur, what a shift may do, and that views are seeded."""

import math

import pytest
import torch

from popmi_core.errors import ConfigError
from popmi_core.learning.views import _jitter, _place, _reflect, augment, rotate_by, view


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_all_eight_turns_and_mirrors_occur_equally_often():
    # Below 16 pixels a sixteenth of the side is no pixel: no shift, the element of D4 alone.
    image = torch.arange(8 * 8 * 3, dtype=torch.uint8).reshape(8, 8, 3)
    views = view(image.expand(4000, -1, -1, -1), "dihedral", seeded())
    turns = [torch.rot90(image, k) for k in range(4)]
    elements = [*turns, *(turn.flip(1) for turn in turns)]
    counts = torch.stack([(views == element).flatten(1).all(1).sum() for element in elements])
    assert counts.sum() == 4000
    # 500 each with standard deviation 21: five of them never happen by chance.
    assert (counts - 500).abs().max() < 105


def test_an_oblong_image_keeps_its_shape_and_is_only_turned_by_a_half():
    image = torch.arange(4 * 6 * 3, dtype=torch.uint8).reshape(4, 6, 3)
    views = view(image.expand(400, -1, -1, -1), "dihedral", seeded())
    elements = [image, image.flip(0), image.flip(1), image.flip(0, 1)]
    assert sum((views == element).flatten(1).all(1).sum().item() for element in elements) == 400


def test_a_shift_moves_by_at_most_a_sixteenth_and_reflects_the_border():
    assert _reflect(torch.arange(-2, 7), 5).tolist() == [2, 1, 0, 1, 2, 3, 4, 3, 2]
    image = torch.zeros(32, 32, 3, dtype=torch.uint8)
    image[15:17, 15:17] = 255
    views = _place(image.expand(300, -1, -1, -1), None, seeded())[..., 0].float()
    rows = (views.sum(2) / 510 * torch.arange(32)).sum(1) / 2
    # The square's centre is at 15.5, invariant under D4; 32 / 16 = 2 pixels are allowed and some take them.
    assert (rows - 15.5).abs().max() == 2


def test_brightness_and_contrast_change_little_and_differ_between_images():
    flat = torch.full((200, 4, 4, 3), 100, dtype=torch.uint8)
    levels = _jitter(flat, seeded())[:, 0, 0, 0].float()
    # A tenth of 255, and half a level of rounding.
    assert (levels - 100).abs().max() <= 26
    assert levels.unique().numel() > 20


def test_views_are_seeded_leave_the_images_alone_and_stay_uint8():
    images = torch.randint(0, 256, (9, 32, 32, 3), dtype=torch.uint8, generator=seeded())
    before = images.clone()
    first, again, other = (augment(images, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)
    assert first.dtype == torch.uint8
    assert first.shape == images.shape


def test_no_image_gives_no_view():
    assert augment(torch.zeros(0, 8, 8, 3, dtype=torch.uint8), seeded()).shape == (0, 8, 8, 3)


def test_turns_without_mirror_images_are_the_four_quarters_equally_often():
    image = torch.arange(8 * 8 * 3, dtype=torch.uint8).reshape(8, 8, 3)
    views = view(image.expand(2000, -1, -1, -1), "quarter", seeded())
    counts = torch.stack([(views == torch.rot90(image, k)).flatten(1).all(1).sum() for k in range(4)])
    assert counts.sum() == 2000
    # 500 each with standard deviation 19.
    assert (counts - 500).abs().max() < 100


def test_shifts_and_changes_of_light_turn_nothing():
    # Dark above, bright below: whatever the light and the shift, it stays that way.
    image = torch.zeros(32, 32, 3, dtype=torch.uint8)
    image[16:] = 200
    views = view(image.expand(100, -1, -1, -1), "shifts", seeded()).float()
    assert (views[:, 28].mean((1, 2)) > views[:, 3].mean((1, 2)) + 100).all()
    assert views.flatten(1).unique(dim=0).shape[0] > 90


def test_quarters_with_shifts_hold_no_mirror_image():
    # A screw of three levels has a sense of rotation that turns keep and mirror images reverse.
    screw = torch.zeros(8, 8, 3, dtype=torch.uint8)
    screw[:4, 4:], screw[:4, :4], screw[4:, :4] = 80, 160, 240
    corners = torch.stack([view(screw.expand(200, -1, -1, -1), "quarter+shifts", seeded())[:, r, c, 0] for r, c in
                           ((0, 7), (0, 0), (7, 0), (7, 7))], dim=1).float()  # fmt: skip
    order = corners.argsort(dim=1)
    # From the darkest corner on, brightness rises counter-clockwise: positions go up by one, modulo four.
    assert ((order.diff(dim=1) % 4) == 1).all()


def test_a_turn_by_quarters_moves_pixels_only_and_one_between_comes_back():
    images = torch.randint(0, 256, (4, 9, 9, 3), dtype=torch.uint8, generator=seeded())
    turned = rotate_by(images, torch.arange(4) * math.pi / 2)
    for k in range(4):
        assert torch.equal(turned[k], torch.rot90(images[k], k))
    x = torch.arange(33).float() - 16
    blob = (255 * torch.exp(-((x[:, None] - 5) ** 2 + x[None] ** 2) / 40))[..., None].expand(-1, -1, 3)
    blob = blob.round().to(torch.uint8)[None]
    there = rotate_by(blob, torch.tensor([0.6]))
    back = rotate_by(there, torch.tensor([-0.6]))
    inside = (x[:, None] ** 2 + x[None] ** 2 < 15**2)[..., None]
    # Two bilinear readings of a blob of width 4.5 pixels: each flattens the peak by at most 255 / 20 / 4.
    assert ((back.float() - blob.float()).abs() * inside).max() <= 7
    assert (there.float() - blob.float()).abs().max() > 60
    # Row 5 below the centre, counter-clockwise by 0.6 rad: it moves to the right of the middle.
    assert there[0, :, :, 0].float().sum(0).argmax() > 16


def test_any_angle_occurs_and_views_none_are_the_images():
    images = torch.randint(0, 256, (9, 16, 16, 3), dtype=torch.uint8, generator=seeded())
    assert view(images, "none", seeded()) is images
    first, again = (view(images, "rotations", seeded(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == images.shape
    assert not torch.equal(first, images)


def test_unknown_views_are_refused():
    with pytest.raises(ConfigError, match="augmentation 'spin' is unknown, expected one of none, quarter"):
        view(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), "spin", seeded())

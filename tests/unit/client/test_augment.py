"""Random views: which elements of D4 occur, what a shift may do, and that views are seeded."""

import torch

from client.augment import _jitter, _reflect, _turn_and_shift, augment


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_all_eight_turns_and_mirrors_occur_equally_often():
    # Below 16 pixels a sixteenth of the side is no pixel: no shift, the element of D4 alone.
    image = torch.arange(8 * 8 * 3, dtype=torch.uint8).reshape(8, 8, 3)
    views = _turn_and_shift(image.expand(4000, -1, -1, -1), seeded())
    turns = [torch.rot90(image, k) for k in range(4)]
    elements = [*turns, *(turn.flip(1) for turn in turns)]
    counts = torch.stack([(views == element).flatten(1).all(1).sum() for element in elements])
    assert counts.sum() == 4000
    # 500 each with standard deviation 21: five of them never happen by chance.
    assert (counts - 500).abs().max() < 105


def test_an_oblong_image_keeps_its_shape_and_is_only_turned_by_a_half():
    image = torch.arange(4 * 6 * 3, dtype=torch.uint8).reshape(4, 6, 3)
    views = _turn_and_shift(image.expand(400, -1, -1, -1), seeded())
    elements = [image, image.flip(0), image.flip(1), image.flip(0, 1)]
    assert sum((views == element).flatten(1).all(1).sum().item() for element in elements) == 400


def test_a_shift_moves_by_at_most_a_sixteenth_and_reflects_the_border():
    assert _reflect(torch.arange(-2, 7), 5).tolist() == [2, 1, 0, 1, 2, 3, 4, 3, 2]
    image = torch.zeros(32, 32, 3, dtype=torch.uint8)
    image[15:17, 15:17] = 255
    views = _turn_and_shift(image.expand(300, -1, -1, -1), seeded())[..., 0].float()
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

"""What a run measures beside the figures of every round, and how a site tells it: turned images, layer by layer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from popmi_core.limits import MIN_CELL

MOST_ANGLES = 360
MOST_LAYERS = 10_000
"""Layers of which a site may tell; nets of this library have some hundreds."""
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Shares = Annotated[tuple[Share, ...], Field(max_length=MOST_ANGLES)]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]


def even_angles(number: int) -> tuple[float, ...]:
    """Return so many angles over the whole circle, in degrees, counter-clockwise; the first is 0."""
    return tuple(360.0 * place / number for place in range(number))


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MeasureConfig(_Frozen):
    """What is measured beside the figures of every round.

    ``turning``: in which rounds sites turn validation images through the full circle and measure LEE by layer.
    ``angles``: how many, evenly over the circle, upright first. ``turned_images``, ``lee_images``: at most so many of a
    site's validation images. ``train_figures``: whether the last round's model is judged on the training images, too;
    never in a run with a privacy budget, which they would leave without noise.
    """

    turning: Literal["last", "every", "never"] = "last"
    angles: int = Field(default=24, ge=4, le=MOST_ANGLES)
    turned_images: int = Field(default=128, ge=MIN_CELL, le=100_000)
    lee_images: int = Field(default=16, ge=MIN_CELL, le=10_000)
    train_figures: Literal["last", "never"] = "last"


class TurningAsk(_Frozen):
    """How a site is to turn its validation images: angles evenly over the circle, at most so many images."""

    angles: int = Field(ge=2, le=MOST_ANGLES)
    images: int = Field(ge=MIN_CELL)
    lee_images: int = Field(ge=MIN_CELL)

    @property
    def degrees(self) -> tuple[float, ...]:
        """The angles, counter-clockwise; the first is 0."""
        return even_angles(self.angles)


class TurnedShares(_Frozen):
    """Means over images, one an angle: total variation to the upright answer, share of other answers, of right ones."""

    total_variation: Shares
    flips: Shares
    accuracy: Shares


class LayerLee(_Frozen):
    """Rotation LEE of one layer: mean squared derivative of the logits per radian squared that the layer adds."""

    name: Name
    kind: Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[^\x00-\x1f\x7f]+$")]
    value: Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)]


class TurnedTold(_Frozen):
    """What a site tells of its turned validation images; never of fewer than ``MIN_CELL``.

    ``floor``: the same of a rotation-invariant function on the same images. ``layers`` is empty where the architecture
    cannot be followed layer by layer; ``note`` then says so.
    """

    num_images: int = Field(ge=MIN_CELL, le=100_000)
    figures: TurnedShares
    floor: TurnedShares
    lee_images: int = Field(default=0, ge=0, le=10_000)
    layers: tuple[LayerLee, ...] = Field(default=(), max_length=MOST_LAYERS)
    note: str = Field(default="", max_length=400)

"""Finite groups: the point groups of the square grid and their exact actions, and any other on any input."""

from popmi_core.groups.actions import act, channel_permutation, grid_orbits, grid_permutation
from popmi_core.groups.finite import FiniteAction, image_action, orbit
from popmi_core.groups.point_group import Element, PointGroup, point_group

__all__ = [
    "Element",
    "FiniteAction",
    "PointGroup",
    "act",
    "channel_permutation",
    "grid_orbits",
    "grid_permutation",
    "image_action",
    "orbit",
    "point_group",
]

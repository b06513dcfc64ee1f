"""The point groups of the square grid (C4, D4 and subgroups) and their exact actions."""

from popmi_core.groups.actions import act, channel_permutation, grid_orbits, grid_permutation
from popmi_core.groups.point_group import Element, PointGroup, point_group

__all__ = ["Element", "PointGroup", "act", "channel_permutation", "grid_orbits", "grid_permutation", "point_group"]

"""What is refused, and the numbers the documentation quotes."""

import pytest

from popmi_core.errors import ModelError
from popmi_core.groups import grid_orbits, point_group


@pytest.mark.parametrize("name", ["C8", "D3", "none", "SO2"])
def test_groups_that_do_not_map_the_grid_onto_itself_are_refused(name):
    with pytest.raises(ModelError, match=f"group '{name}' is not exact on a square grid"):
        point_group(name)


@pytest.mark.parametrize(("name", "orbits"), [("C4", 16), ("D4", 10)])
def test_eight_by_eight_pixels_have_as_many_free_values_as_documented(name, orbits):
    assert grid_orbits(point_group(name), 8).unique().numel() == orbits

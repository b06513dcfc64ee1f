"""The pictures of `popmi barrier`: what is written in them, read from their SVG."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from popmi_core.cli.pictures import Cloud, draw_bounds, draw_features, draw_heads, draw_layers, draw_line
from popmi_core.errors import RunError
from popmi_core.fusion.comparison import Bounds, Line
from popmi_core.metrics.connectivity import LinePath
from popmi_core.metrics.linebound import line_bound

SVG = "{http://www.w3.org/2000/svg}"


def _line(losses: list[float], accuracies: list[float]) -> Line:
    return Line(LinePath(tuple(losses), tuple(accuracies)), 2.0)


def _texts(paths: list[Path]) -> list[tuple[str, float]]:
    """Return every text of the SVG among the files with its height from the top."""
    svg = next(path for path in paths if path.suffix == ".svg")
    return [(text.text or "", float(text.get("y", "0"))) for text in ElementTree.parse(svg).iter(f"{SVG}text")]


def _heads(values: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    return {"blocks.0.attn": {"query_key": values, "value_output": values}}


def test_the_legend_lies_below_the_curves_however_deep_the_valley(tmp_path: Path) -> None:
    deep, flat = _line([0.1, 3.0, 0.1], [0.9, 0.0, 0.9]), _line([0.1, 0.2, 0.1], [0.9, 0.8, 0.9])

    texts = _texts(draw_line(deep, flat, tmp_path))

    # Heights grow downwards.
    axis = max(height for text, height in texts if text == "share of B")
    keys = {text: height for text, height in texts if "matching: barrier" in text or text == "no barrier"}
    assert {"before matching: barrier 2.900", "after matching: barrier 0.100", "no barrier"} <= set(keys)
    assert min(keys.values()) > axis


def test_few_heads_have_their_cosine_in_the_cell_and_zero_has_no_sign(tmp_path: Path) -> None:
    values = np.array([[0.62, -0.001], [0.001, -0.33]])

    written = [text for text, _ in _texts(draw_heads(_heads(0 * values), _heads(values), tmp_path))]

    assert written.count("0.62") == written.count("-0.33") == 2
    assert "-0.00" not in written


def test_many_heads_are_colours_alone(tmp_path: Path) -> None:
    values = np.full((7, 7), 0.62)

    assert "0.62" not in [text for text, _ in _texts(draw_heads(_heads(values), _heads(values), tmp_path))]


def test_the_likeness_of_layers_is_drawn_where_the_figures_lie(tmp_path: Path) -> None:
    row = {"A, B": 0.95, "A, plain average": 0.91, "B, plain average": 0.9, "A, OPM": 0.97, "B, OPM": 0.96}

    texts = [text for text, _ in _texts(draw_layers({"blocks.0": row, "blocks.1": row}, tmp_path))]

    assert "A and B" in texts
    assert "B and plain average" in texts
    assert min(float(text) for text in texts if text.startswith("0.")) >= 0.8


def test_the_bounds_are_called_as_in_the_tables(tmp_path: Path) -> None:
    line = _line([0.1, 0.5, 0.1], [0.9, 0.8, 0.9])
    bound = line_bound(line.path.losses, lipschitz=1.0, distance=2.0, trivial=2.0)

    texts = [text for text, _ in _texts(draw_bounds(line, Bounds(1.0, 1.0, bound, bound), tmp_path))]

    assert "Proposition 2 on the line after matching" in texts
    for form in ("stated", "provable", "tight"):
        assert any(text.startswith(f"{form}: ") for text in texts), form


def test_the_map_names_models_and_sites(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(5, 2))
    clouds = [Cloud(model, site, points) for model in ("A", "B") for site in ("here", "there")]

    texts = [text for text, _ in _texts(draw_features([("Before", clouds), ("After", clouds)], tmp_path))]

    assert {"Before", "After", "A", "B", "here", "there"} <= set(texts)


def test_the_same_figures_give_the_same_files(tmp_path: Path) -> None:
    values = np.eye(3)
    files = [draw_heads(_heads(0 * values), _heads(values), tmp_path / name) for name in ("one", "two")]

    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def test_pictures_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match=r"cannot write pictures to .*Choose another folder"):
        draw_heads(_heads(np.eye(2)), _heads(np.eye(2)), tmp_path / "file" / "out")

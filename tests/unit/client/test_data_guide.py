"""The example in docs/data.md runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

GUIDE = Path(__file__).parents[3] / "docs" / "data.md"


def test_the_guides_example_prints_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "north" / "images").mkdir(parents=True)
    lines = ["image,patient_id,diagnosis"]
    for number in range(60):
        Image.new("RGB", (64, 64), (number * 4, 0, 0)).save(tmp_path / "north" / "images" / f"{number}.png")
        lines.append(f"{number},{number},{('mel', 'naevus', 'scar')[number % 3]}")
    (tmp_path / "north" / "labels.csv").write_text("\n".join(lines) + "\n")
    text = GUIDE.read_text(encoding="utf-8")
    (tmp_path / "north" / "label_map.toml").write_text('naevus = "nv"\nscar = ""\n')
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)

    exec(compile(example, "docs/data.md", "exec"), {})

    printed = capsys.readouterr().out
    assert printed.startswith("USABLE.")
    assert "20 image(s) are left out by the label map." in printed


def test_the_guides_label_map_lines_are_read(tmp_path: Path) -> None:
    from popmi_core.data.labelmap import read_label_map

    (told,) = re.findall(r"or as TOML: (.*?)\. The file", GUIDE.read_text(encoding="utf-8"))
    (tmp_path / "words.toml").write_text("\n".join(re.findall(r"`(.*?)`", told)))

    assert read_label_map(tmp_path / "words.toml", site="north") == {
        "melanoma": "mel", "dysplastic naevus": "nv", "scar": "",
    }  # fmt: skip

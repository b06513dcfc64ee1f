"""Models of other packages are known by name once their package is installed."""

import subprocess
import sys

MODULE = """
from timm.models import register_model
from torch import nn

@register_model
def somebody_elses_net(pretrained=False, num_classes=10, **_):
    return nn.Linear(3, num_classes)
"""
CODE = "from popmi_core.models import build; print(build.known_backbone('somebody_elses_net'))"


def test_a_package_that_names_an_entry_point_has_its_models_known(tmp_path):
    (tmp_path / "elses_package.py").write_text(MODULE, encoding="utf-8")
    info = tmp_path / "elses_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elses-package\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[popmi.models]\nnet = elses_package\n", encoding="utf-8")
    started = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {CODE}"

    done = subprocess.run([sys.executable, "-c", started], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout.strip()) == (0, "somebody_elses_net"), done.stderr

"""A trained model that answers over the turns of an image: a method of the catalogue with nothing to train."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from popmi_core.adapters import Prea
from popmi_core.adapters.geometry.trace import channels_of
from popmi_core.errors import ConfigError

if TYPE_CHECKING:
    from popmi_core.cli.opened import Opened


def around(opened: Opened, name: str, group: str) -> Opened:
    """Return the model as the method makes it answer: over its turns under ``group``, nothing trained.

    Raises:
        ConfigError: If there is no such method, it has weights of its own that would have to be trained, or is no
            method around a model; or the model is under PREA already.
        ModelError: If the method refuses the model or the group.
    """
    from popmi_core.invariance.build import build_method
    from popmi_core.invariance.method import MethodContext

    if isinstance(opened.model, Prea):
        raise ConfigError(
            f"--method {name}: {opened.parent.file} is under PREA already. Leave it out, or give the plain model."
        )
    taken: list[nn.Module] = []

    def backbone() -> nn.Module:
        taken.append(opened.model)
        return opened.model

    made = opened.architecture
    model = build_method(
        name,
        MethodContext(backbone, group, made.image_size, channels_of(opened.model), made.classes, seed=0, train="none"),
    )
    own = {id(parameter) for parameter in opened.model.parameters()}
    added = [told for told, parameter in model.named_parameters() if id(parameter) not in own]
    if not taken or added:
        what = f"has weights of its own ({added[0]}, ...) that nobody trained" if taken else "is a network of its own"
        raise ConfigError(
            f"--method {name} {what}: of a trained model it says nothing. Take one that adds none, such as tta, "
            "equitune-logits or posthoc-mean; docs/invariance.md says how the others are trained."
        )
    return replace(opened, model=model.eval(), method=f"{name} {group}")

"""How many classes a model file knows, read from its head; names that another program put a prefix before."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import timm

from popmi_core.errors import ModelError

if TYPE_CHECKING:
    from popmi_core.cli.parents import Parent

ADAPTER = "prea."
BACKBONE = "backbone."


def classes_of(parent: Parent, name: str, *, prefix: str) -> int:
    """Return the number of classes of one file of timm's model ``name``, whose names begin with ``prefix``.

    Raises:
        ModelError: If there is no head; a prefix that a trainer put before all names is named with how to drop it.
    """
    config = timm.get_pretrained_cfg(name)
    named = (config.classifier if config else None) or "head"
    classifiers = (named,) if isinstance(named, str) else tuple(named)
    for classifier in classifiers:
        weight = parent.state.get(f"{prefix}{classifier}.weight")
        if weight is not None:
            return int(weight.shape[0])
    if found := _wrapped(parent.state, classifiers):
        raise ModelError(_unwrap(parent.file, found))
    raise ModelError(
        f"{parent.file} has no '{prefix}{classifiers[0]}.weight', the head of {name}, so its number of classes is "
        "unknown: another architecture, or not the whole model. Check --model and the file."
    )


def _wrapped(names: Collection[str], classifiers: tuple[str, ...]) -> str:
    """Return what stands before the names of a whole model, such as ``module.``; nothing where no head is found."""
    for name in names:
        before = next((name.removesuffix(end) for c in classifiers if name.endswith(end := f"{c}.weight")), "")
        whole = before.removesuffix(BACKBONE)
        if any(other.startswith(f"{whole}{ADAPTER}") for other in names):
            before = whole
        # Some layer inside may be called as a head is: most names have to begin so.
        if before.endswith(".") and 2 * sum(other.startswith(before) for other in names) > len(names):
            return before
    return ""


def _unwrap(file: str, prefix: str) -> str:
    # A wrapper's name (DataParallel's 'module.', Lightning's 'model.') is no part of timm's.
    script = (
        f"from safetensors.torch import load_file, save_file; save_file({{n.removeprefix('{prefix}'): t for n, t in "
        f"load_file({file!r}).items() if n.startswith('{prefix}')}}, {'plain-' + file!r})"
    )
    return (
        f"{file}: its names begin with '{prefix}', which timm's do not. Save the model inside the wrapper, or strip "
        f'the prefix where the file lies: python -c "{script}"'
    )

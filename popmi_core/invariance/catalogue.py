"""Every rival by name. A method's module is imported when it is asked for, not before: some need escnn."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from types import MappingProxyType

from popmi_core.errors import ConfigError
from popmi_core.invariance.method import Method

# Name -> the module whose ``ENTRIES`` (a tuple of methods) has it.
METHODS = MappingProxyType(
    {
        # Methods over the orbit of an image, on any backbone.
        "equitune-features": "popmi_core.invariance.equitune",
        "equitune-logits": "popmi_core.invariance.equitune",
        "lambda-equitune": "popmi_core.invariance.lambda_equitune",
        "equizero": "popmi_core.invariance.equizero",
        "equiattention": "popmi_core.invariance.equiattention",
        "posthoc-mean": "popmi_core.invariance.posthoc",
        "posthoc-max": "popmi_core.invariance.posthoc",
        "posthoc-sum": "popmi_core.invariance.posthoc",
        "posthoc-most-probable": "popmi_core.invariance.posthoc",
        "posthoc-most-certain": "popmi_core.invariance.posthoc",
        "posthoc-score": "popmi_core.invariance.posthoc",
        "posthoc-attention": "popmi_core.invariance.posthoc",
        "canonicalisation": "popmi_core.invariance.canonicalisation",
        "tta": "popmi_core.invariance.tta",
        # Networks, trained from scratch.
        "z2-cnn": "popmi_core.invariance.networks",
        "p4-cnn": "popmi_core.invariance.networks",
        "p4m-cnn": "popmi_core.invariance.networks",
        "p4-densenet": "popmi_core.invariance.networks",
        "p4m-densenet": "popmi_core.invariance.networks",
        "c8-steerable": "popmi_core.invariance.networks",
        "gsa-p4": "popmi_core.invariance.networks",
        "ge-vit-p4": "popmi_core.invariance.networks",
        "ge-vit-p4m": "popmi_core.invariance.networks",
        "modern-ge-vit": "popmi_core.invariance.networks",
    }
)


def method(name: str) -> Method:
    """Return the method called ``name``.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name not in METHODS:
        near = get_close_matches(name, METHODS, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Choose one of {', '.join(METHODS)}."
        raise ConfigError(f"method {name!r} is not in the catalogue. {hint}")
    entries: tuple[Method, ...] = import_module(METHODS[name]).ENTRIES
    return next(entry for entry in entries if entry.name == name)

"""Putting models into one basis: what may move, and the move that brings a model closest to another."""

from popmi_core.matching2.builder import Builder
from popmi_core.matching2.canonical import canonicalise
from popmi_core.matching2.check import describe_model, verify_symmetry
from popmi_core.matching2.elements import apply, random_element
from popmi_core.matching2.opm import Matched, Matcher, match
from popmi_core.matching2.symmetry import Symmetry

__all__ = [
    "Builder",
    "Matched",
    "Matcher",
    "Symmetry",
    "apply",
    "canonicalise",
    "describe_model",
    "match",
    "random_element",
    "verify_symmetry",
]

"""Putting models into one basis: what may move, and the move that brings a model closest to another."""

from popmi_core.matching.builder import Builder
from popmi_core.matching.canonical import canonicalise
from popmi_core.matching.check import describe_model, verify_symmetry
from popmi_core.matching.elements import apply, random_element
from popmi_core.matching.opm import Matched, Matcher, match
from popmi_core.matching.symmetry import Symmetry

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

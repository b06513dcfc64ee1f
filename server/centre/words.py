"""Marks texts that pages translate; the centre itself speaks English."""

from __future__ import annotations


def N_(text: str) -> str:
    """Mark a text for translation; it is translated where it is shown."""
    return text

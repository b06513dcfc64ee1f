"""Which adapters are asked for, in words that a configuration can hold."""

from __future__ import annotations

from popmi_core.errors import ModelError

KINDS = ("bottleneck", "lifted-conv", "lora")


def adapters_of(text: str | None, fields: str = "trivial") -> tuple[str, ...]:
    """Return the kinds named in ``text`` ("lifted-conv+lora", "none"), each once, in the order of ``KINDS``.

    Where nothing is named, that is the bottleneck, and nothing between regular fields.

    Raises:
        ModelError: If one is not known.
    """
    if text is None:
        return ("bottleneck",) if fields == "trivial" else ()
    named = [] if text == "none" else text.split("+")
    unknown = [name for name in named if name not in KINDS]
    if unknown:
        raise ModelError(
            f"adapters {text!r}: {unknown[0]!r} is no adapter, expected 'none', or some of {', '.join(KINDS)} "
            "joined by '+'. Correct it."
        )
    return tuple(kind for kind in KINDS if kind in named)

"""Find the records of a message's content without holding on to them."""

from __future__ import annotations

from flwr.app import ArrayRecord, ConfigRecord, RecordDict


def array_records(content: RecordDict) -> dict[str, ArrayRecord]:
    """Return the records of tensors.

    Flower's own views (``content.array_records``, ``content.config_records``) refer to themselves, so that everything
    in ``content`` lives until Python looks for garbage: several models at once.
    """
    return {name: record for name, record in content.items() if isinstance(record, ArrayRecord)}


def array_record(content: RecordDict, name: str) -> ArrayRecord | None:
    """Return a record of tensors by its name; None if there is none of this kind."""
    record = content.get(name)
    return record if isinstance(record, ArrayRecord) else None


def config_record(content: RecordDict, name: str) -> ConfigRecord | None:
    """Return a record of texts and figures by its name; None if there is none of this kind."""
    record = content.get(name)
    return record if isinstance(record, ConfigRecord) else None

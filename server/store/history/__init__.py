"""The revisions of a round record's tables."""

from pathlib import Path

from server.store.migrating import History

RECORD_HISTORY = History(
    what="record",
    folder=Path(__file__).parent,
    version_table="record_version",
    revisions=("0001", "0002"),
    lock=0x706F70_01,
)

__all__ = ["RECORD_HISTORY"]

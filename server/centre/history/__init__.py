"""The revisions of the centre's tables."""

from pathlib import Path

from server.store.migrating import History

CENTRE_HISTORY = History(
    what="centre",
    folder=Path(__file__).parent,
    version_table="centre_version",
    revisions=("0001",),
    lock=0x706F70_02,
)

__all__ = ["CENTRE_HISTORY"]

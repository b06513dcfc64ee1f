"""Round records in SQLite (WAL) or PostgreSQL; free of torch and flwr."""

from server.store.reader import RunReader
from server.store.records import CandidateRow, DetailRow, EventRow, MatchRow, MetricRow, RoundRow, RunSummary, SiteRow
from server.store.writer import RunWriter

__all__ = [
    "CandidateRow",
    "DetailRow",
    "EventRow",
    "MatchRow",
    "MetricRow",
    "RoundRow",
    "RunReader",
    "RunSummary",
    "RunWriter",
    "SiteRow",
]

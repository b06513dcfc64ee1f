"""Alembic runs this file; the work is in server/store/migrating.py."""

from server.store.migrating import run_revisions

run_revisions()

"""The steps of a round, one a file; no step imports another."""

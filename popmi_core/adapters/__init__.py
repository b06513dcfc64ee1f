"""Adapters that change what a backbone guarantees."""

"""The coordinating site: rounds, their records, and the pages that show them."""

__all__: list[str] = []

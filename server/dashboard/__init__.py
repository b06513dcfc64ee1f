"""Pages over the round records; importable without torch and flwr."""

__all__: list[str] = []

"""One hospital: what runs beside the images."""

__all__: list[str] = []

"""What a hospital's IT runs beside the training itself, before and while the site takes part."""

__all__: list[str] = []

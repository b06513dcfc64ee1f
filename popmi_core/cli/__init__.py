"""The `popmi` command."""

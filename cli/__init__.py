"""The `culvert` command."""

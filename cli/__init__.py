"""The `culvert` command. Each group of sub-commands is a module of its own, imported when it is used."""

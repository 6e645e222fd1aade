"""`culvert lab`: the commands, one module per few that belong together."""

"""Putting Culvert into a cluster, changing it there and taking it out again."""

"""Cluster objects as the controller's own types, and the one store of them."""

"""Pods of a node that Kubernetes runs: followed at the API server, found on the machine, annotated."""

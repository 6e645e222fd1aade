"""The control plane: objects in, snapshots and certificates out."""

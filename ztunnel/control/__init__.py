"""The controller as seen from a node: one channel, delta xDS and certificates over it."""

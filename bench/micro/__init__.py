"""Single steps of a connection's way, alone."""

"""The Culvert node proxy: in-pod listeners, identities, decisions and telemetry of one node."""

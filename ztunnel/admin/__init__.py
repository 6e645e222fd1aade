"""What people and probes ask a running ztunnel: its configuration, its health, its figures, why it decides so."""

"""How commands ask the processes of a mesh: through an API server, in a lab, or on this machine."""

"""Culvert against peers that it did not write: Envoy, python-hyper's h2 over ssl, openssl."""

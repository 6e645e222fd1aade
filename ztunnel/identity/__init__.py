"""Certificates for the identities of this node's pods: asked for, kept, renewed."""

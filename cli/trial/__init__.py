"""Trying policies on what has happened, before they are applied."""

"""Whole paths, from application to application."""

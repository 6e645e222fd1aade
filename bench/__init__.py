"""Measurements. Nothing here is a test: a benchmark reports and never fails because a number is bad."""

"""Builds the native data path; everything else of the package stands in pyproject.toml."""

from pathlib import Path

from setuptools import setup

# A module that `python -m engine._build` left has another name than pip's, and would be found first.
for stale in (Path(__file__).parent / "engine").glob("_border.*.so"):
    stale.unlink()

setup(cffi_modules=["engine/_build.py:ffi"])

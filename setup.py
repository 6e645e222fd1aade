"""Builds the native data path; everything else of the package stands in pyproject.toml."""

from pathlib import Path

from setuptools import setup

setup(cffi_modules=["engine/_build.py:ffi"])

# A module that `python -m engine._build` left has another name than pip's, and would be found first.
modules = sorted((Path(__file__).parent / "engine").glob("_border.*.so"), key=lambda path: path.stat().st_mtime)
for stale in modules[:-1]:
    stale.unlink()

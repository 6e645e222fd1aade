"""Builds the native data path; everything else of the package stands in pyproject.toml."""

from setuptools import setup

setup(cffi_modules=["engine/_build.py:ffi"])

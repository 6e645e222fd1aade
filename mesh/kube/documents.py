"""Reading documents as the API server writes them, where a field that is empty may as well be absent or null."""

from collections.abc import Mapping
from typing import Any


def labels_of(found: Mapping[str, Any]) -> dict[str, str]:
    """An object's labels."""
    return found["metadata"].get("labels") or {}


def annotations_of(found: Mapping[str, Any]) -> dict[str, str]:
    """An object's annotations."""
    return found["metadata"].get("annotations") or {}

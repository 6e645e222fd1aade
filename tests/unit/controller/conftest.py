from pathlib import Path

import pytest

from tests.unit.controller.nodes import Manifests, pod


@pytest.fixture
def manifests(tmp_path: Path) -> Manifests:
    """With one pod, shop/web."""
    (tmp_path / "manifests").mkdir()
    written = Manifests(tmp_path / "manifests")
    written.write("web", pod("web", "10.0.0.1"))
    return written

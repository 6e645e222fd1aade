"""Moved to mesh.kube, because the node agent needs it too: the old name, for work that was begun under it."""

import importlib
import sys

for _name in ("errors", "resources", "threads", "backoff", "transport", "watch", "api", "follow"):
    sys.modules[f"{__name__}.{_name}"] = importlib.import_module(f"mesh.kube.{_name}")

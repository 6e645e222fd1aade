"""Which build of the data path the tests use: the installed one, or the file that CULVERT_BORDER names.

`make -C engine sanitize` points it at a sanitized build.
"""

import importlib.util
import os
import sys
from typing import Any

from engine import border as engine_border


def load_border() -> Any:
    """The module `engine._border`."""
    path = os.environ.get("CULVERT_BORDER")
    if not path or "engine._border" in sys.modules:
        return engine_border.load()
    spec = importlib.util.spec_from_file_location("engine._border", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["engine._border"] = module
    spec.loader.exec_module(module)
    # The sanitizer's runtime is in this process; preloaded into a shell or a compiler it crashes them now and then.
    os.environ.pop("LD_PRELOAD", None)
    engine_border.check(module)
    return module


MODULE = load_border()
ffi, lib = MODULE.ffi, MODULE.lib

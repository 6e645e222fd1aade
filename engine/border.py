"""Loads the compiled module, and sees to it that it is the one that this tree's border describes.

Python fills structs by the layout that was compiled in; after a pull without a build the two differ, and what fails
then is far from its cause. The build puts a digest of `include/border.h` into the module; here it is compared.
"""

import importlib
from hashlib import sha256
from pathlib import Path
from types import ModuleType

HEADER = Path(__file__).parent / "include" / "border.h"
HOW_TO_BUILD = "run `make setup`, or `pip install -e .` in the environment that runs this"


class BorderUnavailable(Exception):
    """The compiled module is missing, or it was built from another border; the message says what to run."""


def digest(header: Path = HEADER) -> str:
    """What names one version of the border."""
    return sha256(header.read_bytes()).hexdigest()


def load() -> ModuleType:
    """The module `engine._border`, with `ffi` and `lib`; raises BorderUnavailable."""
    try:
        module = importlib.import_module("engine._border")
    except ImportError as error:
        raise BorderUnavailable(f"the engine is not built ({error}); {HOW_TO_BUILD}") from error
    check(module)
    return module


def check(module: ModuleType, header: Path = HEADER) -> None:
    """Raises BorderUnavailable when `module` was built from another header than the one that stands here."""
    if not header.exists():
        return  # installed without its sources: there is nothing that could differ
    read = getattr(module.lib, "cv_border_digest", None)
    built_from = module.ffi.string(read()).decode() if read else "an older border"
    if built_from != digest(header):
        raise BorderUnavailable(
            f"the engine was built from another border.h than {header} ({built_from[:12]}, not {digest(header)[:12]}); "
            f"{HOW_TO_BUILD}"
        )

"""Generates the modules of this folder from its .proto files: `python -m mesh.wire.generate [--check]`.

With `--check` nothing is written; the exit status is 1 when a committed module is not what its .proto file gives.
"""

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from google.rpc import status_pb2
from grpc_tools import protoc

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def generate(out: Path) -> None:
    """Write every module below `out`; raises RuntimeError when a .proto file is wrong."""
    google_rpc = Path(status_pb2.__file__).parents[2]
    well_known = str(files("grpc_tools").joinpath("_proto"))
    protos = sorted(str(path.relative_to(ROOT)) for path in HERE.glob("*.proto"))
    includes = [f"-I{ROOT}", f"-I{google_rpc}", f"-I{well_known}"]
    if protoc.main(["protoc", *includes, f"--python_out={out}", f"--pyi_out={out}", *protos]) != 0:
        raise RuntimeError("protoc refused; its messages are above")


def stale() -> list[str]:
    """Committed modules that differ from what their .proto file gives."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = {path.name: path.read_text() for path in (Path(scratch) / "mesh" / "wire").iterdir()}
    return [name for name, text in sorted(fresh.items()) if (HERE / name).read_text() != text]


def main() -> int:
    """The command line."""
    if "--check" not in sys.argv[1:]:
        generate(ROOT)
        return 0
    for name in (found := stale()):
        print(f"mesh/wire/{name} is not what its .proto file gives; run `make proto`", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

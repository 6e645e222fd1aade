"""An image of Debian's own programs as this machine has them, with the libraries that they ask for."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.cluster.kube import binaries, images

IMAGE = "culvert.test/programs:1"
PROGRAMS = ("sh", "sleep", "curl", "nginx", "redis-server", "redis-cli", "redis-benchmark", "openssl")
# Names of users, and what is found beside a program only when it runs.
FILES = ("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/usr/lib/ssl/openssl.cnf")
FOLDERS = ("run", "tmp", "var/log/nginx", "var/lib/nginx", "usr/share/nginx")
MERGED = ("bin", "sbin", "lib", "lib64")


def write(target: Path) -> None:
    """Write the image as a file."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        root = Path(folder)
        for name in MERGED:
            (root / "usr" / name).mkdir(parents=True)
            (root / name).symlink_to(f"usr/{name}")
        for name in FOLDERS:
            (root / name).mkdir(parents=True)
        for path in {*_programs(), *map(Path, FILES)}:
            into = root / str(path.parent.resolve()).lstrip("/")
            into.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, into / path.name)
        images.write(target, IMAGE, root, ["/usr/bin/sleep", "infinity"])


def _programs() -> Iterator[Path]:
    for name in PROGRAMS:
        found = shutil.which(name, path=binaries.SEARCHED)
        assert found, f"{name} is one of the packages that `make test-cluster` installs"
        yield Path(found)
        done = subprocess.run(["ldd", found], capture_output=True, text=True, check=True)
        yield from map(Path, re.findall(r"(/\S+) \(0x", done.stdout))

"""The programs of a cluster: Kubernetes and CoreDNS built from their published Go modules, the rest from Debian.

What is built is pinned by `modules/*/go.mod` and `go.sum`, and kept in the user's cache under a name that changes with
them. A build takes ten minutes on two cores, once.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

MODULES = Path(__file__).parent / "modules"
# Built only when somebody asks for it by name: the mesh's own tests do without.
EXTRA_MODULES = ("istiod",)
GO_VERSION = (1, 26)

SYSTEM_PROGRAMS = {
    "etcd": "etcd-server",
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "nft": "nftables",
    "gcc": "gcc",
}
CNI_PLUGINS = Path("/usr/lib/cni")  # Debian's containernetworking-plugins
# An administrator's PATH may lack the sbin folders.
SEARCHED = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


class Missing(Exception):
    """What this machine lacks, one line each, with what to install."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def cache() -> Path:
    """Where built binaries are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "culvert" / "kube"


def folder(module: str) -> Path:
    """Where the binaries of a module stand once they are built."""
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum"):
        digest.update((MODULES / module / name).read_bytes())
    return cache() / f"{module}-{digest.hexdigest()[:12]}"


def find(module: str, name: str) -> Path:
    """A built program; raises Missing."""
    path = folder(module) / name
    if not path.exists():
        raise Missing([f"{name} is not built: run `make kube` (Go {GO_VERSION[0]}.{GO_VERSION[1]}, ten minutes, once)"])
    return path


def modules() -> list[str]:
    """What a cluster is built of."""
    return sorted({path.parent.name for path in MODULES.glob("*/go.mod")}.difference(EXTRA_MODULES))


def check_system() -> None:
    """Everything that is not built here is installed; raises Missing."""
    lines = [
        f"{program} is missing: apt-get install {package}"
        for program, package in SYSTEM_PROGRAMS.items()
        if shutil.which(program, path=SEARCHED) is None
    ]
    if not (CNI_PLUGINS / "ptp").exists():
        lines.append(f"{CNI_PLUGINS}/ptp is missing: apt-get install containernetworking-plugins")
    if lines:
        raise Missing(lines)


def check_built(*wanted: str) -> None:
    """Modules are built; raises Missing."""
    if missing := [module for module in wanted if not folder(module).is_dir()]:
        raise Missing([f"{', '.join(missing)} not built yet: run `make kube`"])


def lacks() -> list[str]:
    """What is missing that neither `make kube` nor `make image` can install or build, one sentence each."""
    if os.geteuid() != 0:
        return ["a cluster needs root, for namespaces and cgroups"]
    if all(folder(module).is_dir() for module in modules()):
        return []
    try:
        go()
    except Missing as missing:
        return missing.lines
    return []


def build(module: str, say: Callable[[str], None]) -> Path:
    """Build a module unless that was done before; raises Missing or subprocess.CalledProcessError."""
    target = folder(module)
    if target.is_dir():
        say(f"{module}: built already ({target})")
        return target
    compiler = go()
    cache().mkdir(parents=True, exist_ok=True)
    say(f"{module}: building, some minutes")
    with tempfile.TemporaryDirectory(prefix=f".{module}-", dir=cache()) as temporary:
        environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -trimpath -buildvcs=false"}
        flags = f"-s -w {_version_flags(module)}"
        command = [compiler, "build", "-v", "-ldflags", flags, "-o", f"{temporary}/bin/", "tool"]
        _run_with_progress(command, MODULES / module, environment, say)
        (Path(temporary) / "bin").rename(target)
    for old in cache().glob(f"{module}-*"):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)
    return target


def _version_flags(module: str) -> str:
    """Kubernetes learns its own version from the linker; kubectl and feature gates look at it."""
    if module != "kubernetes":
        return ""
    text = (MODULES / module / "go.mod").read_text()
    version = re.search(r"k8s\.io/kubernetes (v(\d+)\.(\d+)\.\d+)", text)
    assert version is not None, "the module names its version"
    package = "k8s.io/component-base/version"
    values = {"gitVersion": version[1], "gitMajor": version[2], "gitMinor": version[3], "gitTreeState": "clean"}
    return " ".join(f"-X {package}.{name}={value}" for name, value in values.items())


def _run_with_progress(
    command: list[str], directory: Path, environment: dict[str, str], say: Callable[[str], None]
) -> None:
    """Run a build and say how many packages are compiled, every 200 of them."""
    compiled = 0
    tail: list[str] = []
    with subprocess.Popen(
        command,
        cwd=directory,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            compiled += 1
            tail = [*tail[-20:], line.rstrip()]
            if compiled % 200 == 0:
                say(f"  {compiled} packages compiled or fetched")
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr="\n".join(tail))


def go() -> str:
    """The compiler; raises Missing."""
    wanted = ".".join(map(str, GO_VERSION))
    program = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if program is None:
        raise Missing([f"go is missing: install Go {wanted} or later from https://go.dev/dl/"])
    text = subprocess.run([program, "env", "GOVERSION"], capture_output=True, text=True, check=True).stdout.strip()
    found = tuple(int(part) for part in text.removeprefix("go").split(".")[:2])
    if found < GO_VERSION:
        raise Missing([f"{program} is {text}, wanted: Go {wanted} or later from https://go.dev/dl/"])
    return program

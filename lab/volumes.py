"""Volumes of a pod as directories that are bound into it: emptyDir, configMap, hostPath."""

from collections.abc import Callable
from pathlib import Path

from lab.manifests import Manifest
from lab.podspec import PodSpec


def bind_sources(
    spec: PodSpec, at: Path, namespace: str, config_map: Callable[[str], Manifest | None]
) -> list[tuple[str, str]]:
    """Make the directories below `at` and say what is bound where; raises OSError.

    The file system of a pod is shared by its containers here, so a volume stands at its path for all of them.
    """
    sources = {name: _source(name, volume, at / name, namespace, config_map) for name, volume in spec.volumes}
    binds: dict[str, str] = {}
    for container in (*spec.containers, *spec.init_containers):
        for mount in container.mounts:
            if binds.setdefault(mount.path, sources[mount.volume]) != sources[mount.volume]:
                raise OSError(f"two volumes at {mount.path}: containers of a pod share one file system here")
    return [(source, path) for path, source in binds.items()]


def _source(name: str, volume: Manifest, at: Path, namespace: str, config_map: Callable[[str], Manifest | None]) -> str:
    if "hostPath" in volume:
        path = str((volume["hostPath"] or {}).get("path", ""))
        if not Path(path).exists():
            raise OSError(f"volume {name}: hostPath {path!r} does not exist")
        return path
    at.mkdir(parents=True, exist_ok=True)
    at.chmod(0o777)
    if "configMap" in volume:
        wanted = str((volume["configMap"] or {}).get("name", ""))
        found = config_map(wanted)
        if found is None:
            raise OSError(f"volume {name}: there is no ConfigMap {namespace}/{wanted}")
        for key, text in (found.get("data") or {}).items():
            if "/" in key or key in (".", ".."):
                raise OSError(f"ConfigMap {namespace}/{wanted}: {key!r} cannot name a file")
            (at / key).write_text(str(text))
    return str(at)

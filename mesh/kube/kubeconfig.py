"""Which cluster is meant, and as whom: kubeconfig files as kubectl reads them, or the pod's own service account."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.kube.errors import Misconfigured


@dataclass(frozen=True, slots=True)
class Kubeconfig:
    """Files of which the first that says something counts, and a context of theirs (empty: the current one)."""

    files: tuple[Path, ...]
    context: str = ""

    def __str__(self) -> str:
        names = os.pathsep.join(map(str, self.files))
        return f"kubeconfig {names}, context {self.context}" if self.context else f"kubeconfig {names}"


def of_user(given: Path | None, context: str, env: Mapping[str, str]) -> Kubeconfig | None:
    """The given file, else those of KUBECONFIG that are there, else ~/.kube/config; None: there is none.

    Raises Misconfigured when KUBECONFIG names only files that are not there: what is asked then is not what is meant.
    """
    if given is not None:
        return Kubeconfig((given,), context)
    named = [Path(part) for part in env.get("KUBECONFIG", "").split(os.pathsep) if part]
    found = tuple(path for path in named or [Path.home() / ".kube" / "config"] if path.is_file())
    if named and not found:
        raise Misconfigured(f"KUBECONFIG is {env['KUBECONFIG']}, and no such file is there")
    return Kubeconfig(found, context) if found else None


def configuration(where: Kubeconfig | None) -> Any:
    """The official client's configuration, by the files or (None) by the pod's account; raises Misconfigured."""
    from kubernetes import client, config  # noqa: PLC0415 - 22 MB and half a second that the source `files` does without
    from kubernetes.config.config_exception import ConfigException  # noqa: PLC0415

    found = client.Configuration()
    try:
        if where is None:
            config.load_incluster_config(client_configuration=found)
            return found
        files, context = _read(where)
        with _complaints() as complaints:
            config.load_kube_config(os.pathsep.join(files), context, found)
    except (ConfigException, OSError, ValueError, KeyError, TypeError) as error:
        place = where or "the pod's service account (or give --kubeconfig)"
        raise Misconfigured(f"{place}: {_sentence(error)}") from error
    if complaints:
        raise Misconfigured(f"{where}: no credentials: {'; '.join(complaints)}")
    return found


def _read(where: Kubeconfig) -> tuple[list[str], str]:
    """The files that say something, and the context that is meant; raises OSError, ValueError.

    Of several current contexts the first counts, as with kubectl; the official client would take the last.
    """
    from yaml import YAMLError, safe_load  # noqa: PLC0415 - as above

    files, current, known = [], "", []
    for path in where.files:
        try:
            document = safe_load(path.read_text())
        except YAMLError as error:
            raise ValueError(_sentence(error)) from error
        if document is None:
            continue
        if not isinstance(document, dict):
            raise ValueError(f"{path} is no mapping")
        files.append(str(path))
        current = current or str(document.get("current-context") or "")
        known += [str(one["name"]) for one in document.get("contexts") or () if isinstance(one, dict) and "name" in one]
    context = where.context or current
    if not context:
        raise ValueError(f"it has no current context: say --context NAME; known: {', '.join(known) or 'none'}")
    if context not in known:
        raise ValueError(f"there is no context {context!r}; known: {', '.join(known) or 'none'}")
    return files, context


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What the official client only logs: a plug-in that gives no credentials. It would go on as nobody."""
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name == "root":
                found.append(record.getMessage())

    collector = Collector(logging.ERROR)
    logging.getLogger().addHandler(collector)
    try:
        yield found
    finally:
        logging.getLogger().removeHandler(collector)


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__

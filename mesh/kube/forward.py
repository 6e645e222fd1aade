"""Ports of pods through the API server, and connections of people: a kubeconfig as kubectl finds it.

What a pod listens for on loopback is reached in no other way from outside. One connection per request: the API server
and the kubelet each take a moment to set one up, so callers ask several pods at once.
"""

import http.client
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mesh.kube.errors import Unavailable, of_answer
from mesh.kube.transport import Misconfigured

MAX_ANSWER_BYTES = 256 << 20


def kubeconfig_of_user(given: Path | None, env: Mapping[str, str]) -> Path | None:
    """The file that is meant: the given one, KUBECONFIG's first that exists, or ~/.kube/config; None: there is none."""
    if given is not None:
        return given
    named = [Path(part) for part in env.get("KUBECONFIG", "").split(os.pathsep) if part]
    for path in [*named, *([] if named else [Path.home() / ".kube" / "config"])]:
        if path.is_file():
            return path
    return None


class Forwarder:
    """HTTP requests to ports of pods; blocking, from any thread."""

    def __init__(self, kubeconfig: Path | None) -> None:
        """Raises Misconfigured. Without a kubeconfig as the pod's own service account."""
        from kubernetes import client, config  # noqa: PLC0415 - as in mesh.kube.transport
        from kubernetes.config.config_exception import ConfigException  # noqa: PLC0415

        self._configuration = client.Configuration()
        try:
            if kubeconfig is None:
                config.load_incluster_config(client_configuration=self._configuration)
            else:
                config.load_kube_config(config_file=str(kubeconfig), client_configuration=self._configuration)
        except (ConfigException, OSError, ValueError, KeyError, TypeError) as error:
            raise Misconfigured(f"{kubeconfig or 'the service account of the pod'}: {error}") from error

    def get(self, namespace: str, pod: str, port: int, path: str, timeout_s: float = 20.0) -> bytes:
        """What the pod answers on a port; raises ApiFault."""
        what = f"GET {namespace}/{pod}:{port}{path}"
        connection = http.client.HTTPConnection("localhost", port, timeout=timeout_s)
        try:
            connection.sock = self._open(namespace, pod, port)
            connection.sock.settimeout(timeout_s)
            connection.request("GET", path, headers={"Connection": "close"})
            answer = connection.getresponse()
            body = answer.read(MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"{what}: {error or type(error).__name__}") from error
        finally:
            connection.close()
        if not 200 <= answer.status < 300:
            raise of_answer(what, answer.status, dict(answer.headers), _as_message(body))
        return body

    def _open(self, namespace: str, pod: str, port: int) -> Any:
        from kubernetes.client.exceptions import ApiException  # noqa: PLC0415
        from kubernetes.stream.ws_client import portforward_call  # noqa: PLC0415

        url = f"{self._configuration.host}/api/v1/namespaces/{namespace}/pods/{pod}/portforward"
        settings = self._configuration.auth_settings().values()
        headers = {one["key"]: one["value"] for one in settings if one.get("in") == "header" and one.get("value")}
        try:
            forward = portforward_call(
                self._configuration, "GET", url, query_params=[("ports", str(port))], headers=headers
            )
        except ApiException as error:
            raise Unavailable(f"port {port} of pod {namespace}/{pod}: {error.reason}") from error
        return forward.socket(port)


def _as_message(body: bytes) -> bytes:
    """Our processes refuse in plain text; the API server in a document."""
    try:
        json.loads(body)
    except ValueError:
        return json.dumps({"message": body.decode("utf-8", "replace").strip()}).encode()
    return body

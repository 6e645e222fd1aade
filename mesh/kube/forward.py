"""Ports of pods through the API server.

What a pod listens for on loopback is reached in no other way from outside. One connection per request: the API server
and the kubelet each take a moment to set one up, so callers ask several pods at once.
"""

import http.client
import json
from typing import Any

from mesh.kube.errors import Unavailable, of_answer

MAX_ANSWER_BYTES = 256 << 20


class Forwarder:
    """HTTP requests to ports of pods; blocking, from any thread."""

    def __init__(self, configuration: Any) -> None:
        """By a configuration of the official client (mesh.kube.kubeconfig)."""
        self._configuration = configuration

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
        from websocket import WebSocketBadStatusException  # noqa: PLC0415 - what that client speaks through

        url = f"{self._configuration.host}/api/v1/namespaces/{namespace}/pods/{pod}/portforward"
        settings = self._configuration.auth_settings().values()
        headers = {one["key"]: one["value"] for one in settings if one.get("in") == "header" and one.get("value")}
        try:
            forward = portforward_call(
                self._configuration, "GET", url, query_params=[("ports", str(port))], headers=headers
            )
        except ApiException as error:
            what, refusal = f"port {port} of pod {namespace}/{pod}", error.__context__
            if isinstance(refusal, WebSocketBadStatusException):
                raise of_answer(what, refusal.status_code, {}, refusal.resp_body or b"") from error
            raise Unavailable(f"{what}: {error.reason}") from error
        return forward.socket(port)


def _as_message(body: bytes) -> bytes:
    """Our processes refuse in plain text; the API server in a document."""
    try:
        json.loads(body)
    except ValueError:
        return json.dumps({"message": body.decode("utf-8", "replace").strip()}).encode()
    return body

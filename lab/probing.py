"""Probes as a kubelet sends them: from sockets of the node's own namespace, or as a command in the pod.

The namespace matters: the mesh knows a node's probe by the namespace of its socket, not by its address.
"""

import asyncio
import os
import socket
from pathlib import Path

from lab.podspec import Probe
from mesh import netns

USER_AGENT = "kube-probe/1.34"
# What a component says of thousands of pods.
MAX_BODY_BYTES = 32 << 20


async def connect(node: Path, ip: str, port: int) -> socket.socket:
    """A connected socket of the node's namespace; raises OSError."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    sock = netns.inside(node, lambda: socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
    try:
        await asyncio.get_running_loop().sock_connect(sock, (ip, port))
    except BaseException:
        sock.close()
        raise
    return sock


async def tcp_fault(node: Path, ip: str, port: int) -> str | None:
    """Why nobody accepts there, or None."""
    try:
        (await connect(node, ip, port)).close()
    except OSError as error:
        return f"TCP {ip}:{port}: {_why(error)}"
    return None


async def http_get(node: Path, ip: str, port: int, target: str) -> bytes:
    """The body of a 200 answer; raises OSError for anything else."""
    loop = asyncio.get_running_loop()
    with await connect(node, ip, port) as sock:
        await loop.sock_sendall(sock, f"GET {target} HTTP/1.1\r\nHost: {ip}\r\nConnection: close\r\n\r\n".encode())
        answer = bytearray()
        while chunk := await loop.sock_recv(sock, 64 * 1024):
            answer += chunk
            if len(answer) > MAX_BODY_BYTES:
                raise OSError(f"GET {target}: the answer has more than {MAX_BODY_BYTES} bytes")
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    status = head.partition(b"\r\n")[0].split()
    if len(status) < 2 or status[1] != b"200":
        raise OSError(f"GET {target}: {head.partition(chr(13).encode())[0].decode(errors='replace') or 'no answer'}")
    return body


async def http_fault(node: Path, ip: str, port: int, probe: Probe) -> str | None:
    """Why a GET is not answered by 200-399, or None."""
    host = f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
    headers = {
        "Host": host,
        "User-Agent": USER_AGENT,
        "Accept": "*/*",
        "Connection": "close",
        **dict(probe.http_headers),
    }
    lines = [f"GET {probe.http_path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    try:
        sock = await connect(node, ip, port)
        with sock:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(sock, "\r\n".join(lines).encode())
            status = await _status_line(loop, sock)
    except OSError as error:
        return f"GET http://{host}{probe.http_path}: {_why(error)}"
    parts = status.split()
    if len(parts) < 2 or not parts[1].isdigit():
        return f"GET http://{host}{probe.http_path}: the answer is not HTTP"
    code = int(parts[1])
    return None if 200 <= code < 400 else f"GET http://{host}{probe.http_path}: status {code}"


def _why(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


async def _status_line(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> bytes:
    data = b""
    while b"\n" not in data and len(data) < 4096:
        chunk = await loop.sock_recv(sock, 4096)
        if not chunk:
            break
        data += chunk
    return data.partition(b"\n")[0]

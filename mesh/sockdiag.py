"""TCP connections of a network namespace, as the kernel lists them, and the means to end one (SOCK_DIAG netlink).

Used for connections from before a pod was enrolled, which no program has seen. A connection is named by its tuple and
socket cookie together, so that a later one on the same ports is never hit. Needs CAP_NET_ADMIN for `destroy`, and a
kernel with CONFIG_INET_DIAG_DESTROY. Layouts: include/uapi/linux/{netlink,sock_diag,inet_diag}.h.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mesh.addresses import IPAddress, from_packed
from mesh.netns import inside

TCP_ESTABLISHED = 1

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_SOCK_DESTROY = 21
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP, _NLM_F_DUMP_INTR = 0x1, 0x4, 0x300, 0x10
_NLMSG_ERROR, _NLMSG_DONE = 2, 3

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_REQUEST = struct.Struct("=BBBBI")  # family, protocol, extensions, pad, states; a socket id follows
_ID = struct.Struct("!HH16s16s")  # source port, destination port, source, destination
_ID_TAIL = struct.Struct("=IQ")  # interface, cookie
_MESSAGE = struct.Struct("=BBBB")  # family, state, timer, retransmits; a socket id and _MESSAGE_TAIL follow
_MESSAGE_TAIL = struct.Struct("=IIIII")  # expires, receive queue, send queue, uid, inode

# A dump that the kernel marks as interrupted is taken again so many times; then what was seen is what there is.
_DUMP_TRIES = 3
_TIMEOUT_S = 5.0
_READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """One end of a connection; addresses of v4-mapped IPv6 sockets come as IPv4, `family` tells."""

    family: int
    state: int
    local: IPAddress
    local_port: int
    remote: IPAddress
    remote_port: int
    interface: int
    cookie: int
    uid: int
    inode: int

    @property
    def is_loopback(self) -> bool:
        """Whether it never leaves its namespace by its addresses."""
        return self.local.is_loopback or self.remote.is_loopback or self.local == self.remote


class SockDiag:
    """SOCK_DIAG of one namespace, given as descriptor or path; a context manager. Raises OSError."""

    def __init__(self, netns: int | str | Path) -> None:
        self._socket = inside(netns, _open)
        self._sequence = 0

    def __enter__(self) -> "SockDiag":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def established(self) -> list[TcpSocket]:
        """Connections in state ESTABLISHED, both families, loopback included."""
        return self.connections(1 << TCP_ESTABLISHED)

    def connections(self, states: int) -> list[TcpSocket]:
        """Sockets in the states of a bit mask (1 << TCP state); request sockets and TIME_WAIT have inode 0."""
        return [found for family in (socket.AF_INET, socket.AF_INET6) for found in self._dump(family, states)]

    def destroy(self, target: TcpSocket) -> bool:
        """End a connection: its own side sees ECONNABORTED, the peer a reset. False when it is gone already."""
        raw_local, raw_remote = _raw(target.family, target.local), _raw(target.family, target.remote)
        socket_id = _ID.pack(target.local_port, target.remote_port, raw_local, raw_remote)
        socket_id += _ID_TAIL.pack(target.interface, target.cookie)
        request = _REQUEST.pack(target.family, socket.IPPROTO_TCP, 0, 0, 1 << target.state) + socket_id
        self._send(_SOCK_DESTROY, _NLM_F_REQUEST | _NLM_F_ACK, request)
        for kind, _, payload in self._answers():
            if kind == _NLMSG_ERROR:
                return _is_done(payload)
        raise AssertionError("answers end with a raised error")

    def _dump(self, family: int, states: int) -> list[TcpSocket]:
        found: list[TcpSocket] = []
        for _ in range(_DUMP_TRIES):
            found, interrupted = self._dump_once(family, states)
            if not interrupted:
                break
        return found

    def _dump_once(self, family: int, states: int) -> tuple[list[TcpSocket], bool]:
        any_id = bytes(_ID.size + _ID_TAIL.size)
        request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, states) + any_id
        self._send(_SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | _NLM_F_DUMP, request)
        found: list[TcpSocket] = []
        interrupted = False
        for kind, flags, payload in self._answers():
            interrupted = interrupted or bool(flags & _NLM_F_DUMP_INTR)
            if kind == _NLMSG_DONE:
                break
            if kind == _NLMSG_ERROR:
                _raise(payload)
            found.append(_parse(payload))
        return found, interrupted

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body)

    def _answers(self) -> Iterator[tuple[int, int, bytes]]:
        """Messages to the last request as (type, flags, payload); the caller stops reading at the end of its answer."""
        while True:
            data = self._socket.recv(_READ_BYTES)
            offset = 0
            while offset + _HEADER.size <= len(data):
                length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
                if length < _HEADER.size or offset + length > len(data):
                    raise OSError(errno.EBADMSG, "the kernel's answer is cut")
                if sequence == self._sequence:
                    yield kind, flags, data[offset + _HEADER.size : offset + length]
                offset += (length + 3) & ~3


def _open() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
    sock.settimeout(_TIMEOUT_S)
    return sock


def _parse(payload: bytes) -> TcpSocket:
    family, state, _, _ = _MESSAGE.unpack_from(payload)
    offset = _MESSAGE.size
    local_port, remote_port, local, remote = _ID.unpack_from(payload, offset)
    interface, cookie = _ID_TAIL.unpack_from(payload, offset + _ID.size)
    _, _, _, uid, inode = _MESSAGE_TAIL.unpack_from(payload, offset + _ID.size + _ID_TAIL.size)
    size = 4 if family == socket.AF_INET else 16
    return TcpSocket(
        family=family,
        state=state,
        local=from_packed(local[:size]),
        local_port=local_port,
        remote=from_packed(remote[:size]),
        remote_port=remote_port,
        interface=interface,
        cookie=cookie,
        uid=uid,
        inode=inode,
    )


def _raw(family: int, address: IPAddress) -> bytes:
    if family == socket.AF_INET:
        return address.packed.ljust(16, b"\0")
    return address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed


def _is_done(payload: bytes) -> bool:
    code = -struct.unpack_from("=i", payload)[0]
    if code in (errno.ENOENT, errno.ESTALE):
        return False
    if code:
        raise OSError(code, f"SOCK_DESTROY: {os.strerror(code)}")
    return True


def _raise(payload: bytes) -> None:
    code = -struct.unpack_from("=i", payload)[0]
    raise OSError(code, f"SOCK_DIAG: {os.strerror(code)}")

"""The node's ends of a pod's network links, asked of the kernel by rtnetlink. Changes nothing.

A veth has one end in the pod and one in the node, and each names the other by index and namespace id. Links of other
kinds (a device moved into the pod, macvlan, ipvlan) have no end in the node, or none that all of the pod's packets
pass; they are told by name. Layouts: include/uapi/linux/{netlink,rtnetlink,if_link,net_namespace}.h.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from mesh.netns import inside

_GETLINK, _NEWLINK, _NEWNSID, _GETNSID = 18, 16, 88, 90
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change
_IFNAME, _LINKED, _LINKINFO, _NETNSID = 3, 5, 18, 37  # IFLA_*
_KIND = 1  # IFLA_INFO_KIND
_NSID, _NSID_FD = 1, 3  # NETNSA_*
_IFF_LOOPBACK = 0x8
_TYPE_MASK = 0x3FFF  # the upper bits of an attribute's type are flags

# Kinds whose packets leave by another link of the same pod, where they are seen again.
_UPON_OTHERS = frozenset(
    {"bridge", "bond", "dummy", "gre", "gretap", "ip6gre", "ip6tnl", "ipip", "sit", "tun", "vcan", "vlan", "vrf"}
    | {"vti", "vti6", "vxlan", "wireguard", "ip6gretap", "erspan", "ip6erspan", "geneve", "ifb", "team"}
)
_TIMEOUT_S = 5.0
_READ_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Link:
    """One network link as its namespace shows it. `netnsid` is where the link it belongs to lives; None: here."""

    index: int
    name: str
    kind: str
    linked: int
    netnsid: int | None
    is_loopback: bool


@dataclass(frozen=True, slots=True)
class Ends:
    """Where all that a pod sends can be seen on the node: indexes in the caller's namespace, and links without."""

    indexes: tuple[int, ...]
    without: tuple[str, ...]


def ends_of(netns_fd: int) -> Ends:
    """The ends, in the calling thread's namespace, of the links of the namespace behind a descriptor; OSError."""
    with _open() as here:
        ours = _leading_to(_namespace_id(here, netns_fd), _links(here))
    with inside(netns_fd, _open) as there:
        theirs = {link.index: link for link in _links(there) if not link.is_loopback}
    ends = {end.linked: end.index for end in ours if end.kind == "veth" and _is_veth(theirs.get(end.linked))}
    without = [link.name for link in theirs.values() if link.index not in ends and not _is_seen_elsewhere(link)]
    return Ends(tuple(sorted(ends.values())), tuple(sorted(without)))


def ends_here(netns_fds: Mapping[int, int]) -> dict[int, set[int]]:
    """Which veths of the calling thread's namespace lead to each of many others, given by descriptor under any key.

    Asks once for all links, and looks at this end only: cheap enough to be done again and again. Raises OSError.
    """
    with _open() as here:
        links = _links(here)
        ids = {key: _namespace_id(here, fd) for key, fd in netns_fds.items()}
    return {key: {end.index for end in _leading_to(netnsid, links) if _is_veth(end)} for key, netnsid in ids.items()}


def _leading_to(netnsid: int | None, links: Iterable[Link]) -> list[Link]:
    return [] if netnsid is None else [link for link in links if link.netnsid == netnsid]


def _is_veth(link: Link | None) -> bool:
    return link is not None and link.kind == "veth"


def _is_seen_elsewhere(link: Link) -> bool:
    return link.kind in _UPON_OTHERS and link.netnsid is None


def _open() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    sock.settimeout(_TIMEOUT_S)
    sock.bind((0, 0))
    return sock


def _ask(sock: socket.socket, kind: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
    """The answers to one request, until the kernel says that there are no more; raises OSError."""
    sock.send(_HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | flags, 1, 0) + body)
    while True:
        data = sock.recv(_READ_BYTES)
        while len(data) >= _HEADER.size:
            length, answer, *_ = _HEADER.unpack_from(data)
            payload, data = data[_HEADER.size : length], data[length + 3 & ~3 :]
            if answer == _NLMSG_DONE:
                return
            if answer == _NLMSG_ERROR:
                code = -struct.unpack_from("=i", payload)[0]
                raise OSError(code, f"rtnetlink: {os.strerror(code)}")
            yield answer, payload
        if not flags & _NLM_F_DUMP:
            return


def _namespace_id(sock: socket.socket, netns_fd: int) -> int | None:
    """How the socket's namespace names another one; None when it has no name for it, and so no link into it."""
    body = struct.pack("=B3x", socket.AF_UNSPEC) + struct.pack("=HHI", 8, _NSID_FD, netns_fd)
    for answer, payload in _ask(sock, _GETNSID, 0, body):
        if answer == _NEWNSID:
            found: int = struct.unpack("=i", _attributes(payload[4:])[_NSID])[0]
            return found if found >= 0 else None
    raise OSError(errno.EPROTO, "rtnetlink: no answer to the question for a namespace's id")


def _links(sock: socket.socket) -> list[Link]:
    answers = _ask(sock, _GETLINK, _NLM_F_DUMP, _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
    return [_parse(payload) for answer, payload in answers if answer == _NEWLINK]


def _parse(payload: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(payload)
    found = _attributes(payload[_LINK.size :])
    info = _attributes(found.get(_LINKINFO, b""))
    netnsid = found.get(_NETNSID)
    return Link(
        index=index,
        name=_text(found.get(_IFNAME, b"")),
        kind=_text(info.get(_KIND, b"")),
        linked=struct.unpack("=I", found[_LINKED])[0] if _LINKED in found else 0,
        netnsid=None if netnsid is None else struct.unpack("=i", netnsid)[0],
        is_loopback=bool(flags & _IFF_LOOPBACK),
    )


def _text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode(errors="replace")


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        found[kind & _TYPE_MASK] = data[4:length]
        data = data[length + 3 & ~3 :]
    return found

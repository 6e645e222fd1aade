"""Both applications of many idle connections, in a process of their own: its descriptors are not the nodes'.

Says on which port it listens, then takes orders on standard input: a number opens so many more connections, `check`
sends a few bytes over some of them. Answers each with `ok`; ends, with all of them, at the end of its input.
"""

import resource
import socket
import sys

from tests.support.sockets import accept, listen, port_of, read_exactly

AT_ONCE = 10


class Pairs:
    """Open connections with both their ends."""

    def __init__(self, listener: socket.socket, address: tuple[str, int]) -> None:
        self.listener = listener
        self.address = address
        self.held: list[tuple[socket.socket, socket.socket]] = []

    def open(self, count: int) -> None:
        for _ in range(count // AT_ONCE):
            near = [socket.create_connection(self.address, 10) for _ in range(AT_ONCE)]
            for index, sock in enumerate(near):
                sock.sendall(bytes([index]))
            for _ in near:
                behind = accept(self.listener)
                self.held.append((near[read_exactly(behind, 1)[0]], behind))

    def check(self) -> None:
        for near, behind in self.held[:: max(1, len(self.held) // 50)]:
            near.sendall(b"still there?")
            assert read_exactly(behind, 12) == b"still there?"
            behind.sendall(b"yes")
            assert read_exactly(near, 3) == b"yes"


def main() -> None:
    """`idle IP VIP PORT`: listen on IP; applications dial VIP at PORT, which the listener's port stands for."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ip, vip, port = sys.argv[1:]
    with listen(ip) as listener:
        pairs = Pairs(listener, (vip, int(port)))
        print(port_of(listener), flush=True)
        for line in sys.stdin:
            if line.strip() == "check":
                pairs.check()
            else:
                pairs.open(int(line))
            print("ok", flush=True)


if __name__ == "__main__":
    main()

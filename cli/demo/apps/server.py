"""A TCP application that knows nothing of the mesh. It reads one line and then does what it says:

who    answer with the addresses that accept() and getsockname() gave
sum    read to the end of input, then answer with count and SHA-256 (needs half-close)
echo   answer every line with itself
"""

import hashlib
import json
import socket
import socketserver
import sys
import threading


class Handler(socketserver.StreamRequestHandler):
    """One connection."""

    def handle(self) -> None:
        """Read what to do and do it."""
        command = self.rfile.readline().strip()
        if command == b"who":
            seen = {
                "accepted": self.client_address[:2],
                "peername": self.connection.getpeername()[:2],
                "sockname": self.connection.getsockname()[:2],
            }
            self.wfile.write(json.dumps(seen).encode())
        elif command == b"sum":
            self._sum()
        elif command == b"echo":
            for line in self.rfile:
                self.wfile.write(line)

    def _sum(self) -> None:
        digest, count = hashlib.sha256(), 0
        while chunk := self.rfile.read1(1 << 20):
            digest.update(chunk)
            count += len(chunk)
        self.wfile.write(f"{count} {digest.hexdigest()}\n".encode())


class Greeter(socketserver.StreamRequestHandler):
    """Speaks first, as SMTP and MySQL do."""

    def handle(self) -> None:
        """Greet, then wait for a word."""
        self.wfile.write(b"220 greeter ready\r\n")
        self.rfile.readline()


class Server(socketserver.ThreadingTCPServer):
    """Listens on both families."""

    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    threading.Thread(target=Server(("::", int(sys.argv[2])), Greeter).serve_forever, daemon=True).start()
    Server(("::", int(sys.argv[1])), Handler).serve_forever()

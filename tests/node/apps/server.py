"""An application with one habit per port, run unmodified inside a pod. Every port listens on both families.

7001 tells who connected (one JSON line), then echoes until end of file, says `eof` and closes
7002 speaks first
7003 never reads
7004 answers the SHA-256 of everything it got, once the other side has ended
7005 reads one line with a number, sends so many bytes, ends
7006 reads one line, then resets
"""

import hashlib
import json
import resource
import socket
import socketserver
import struct
import sys
import threading

RESET = struct.pack("ii", 1, 0)


class Report(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        facts = {"peer": self.request.getpeername()[:2], "local": self.request.getsockname()[:2]}
        self.request.sendall(json.dumps(facts).encode() + b"\n")
        while data := self.request.recv(65536):
            self.request.sendall(data)
        self.request.sendall(b"eof")


class SpeaksFirst(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.request.sendall(b"220 mail.example ESMTP\r\n")
        self.request.recv(1024)


class NeverReads(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        threading.Event().wait(30)


class Digest(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        digest = hashlib.sha256()
        while data := self.request.recv(1 << 18):
            digest.update(data)
        self.request.sendall(digest.hexdigest().encode())


class Sends(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        left = int(self.rfile.readline())
        block = bytes(range(256)) * 256
        while left > 0:
            self.request.sendall(block[:left])
            left -= len(block)


class Resets(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.rfile.readline()
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.request.close()


HABITS = {7001: Report, 7002: SpeaksFirst, 7003: NeverReads, 7004: Digest, 7005: Sends, 7006: Resets}


class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a peer that goes away is what many cases are about


def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a login shell's 1,024 are fewer than some tests hold
    servers = [Server(("::", port), handler) for port, handler in HABITS.items()]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("listening", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    sys.exit(main())

"""Dials again and again, for so many seconds or until SIGTERM: `watch.py HOST PORT SECONDS`.

First a line "start", at the end one JSON line: of each connection when it began, whether it worked, how long it took.
"""

import json
import signal
import socket
import sys
import time


def works(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=3) as sock:
            return bool(sock.recv(100))
    except OSError:
        return False


def main(host: str, port: str, seconds: str) -> None:
    print("start", flush=True)
    started, ended = time.monotonic(), []
    seen: list[tuple[float, bool, float]] = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    while not ended and time.monotonic() - started < float(seconds):
        before = time.monotonic()
        ok = works(host, int(port))
        seen.append((round(before - started, 4), ok, round(time.monotonic() - before, 4)))
        time.sleep(0.01)
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Lines to a descriptor, written by a thread of their own.

Whoever reads the log may stall (a stuck collector, a full pipe), and that must not stop the event loop, on which policy
updates run. What waits is bounded: beyond it new lines are dropped and counted. A descriptor that refuses to be
written, as on a full disk, costs its lines too.
"""

import os
import threading

# About thirty thousand lines; a collector that is further behind is not coming back soon.
MOST_WAITING_BYTES = 16 << 20


class LineWriter:
    """The file-like end that the event loop writes to. The thread starts with the first line."""

    def __init__(self, fd: int, most_waiting_bytes: int = MOST_WAITING_BYTES) -> None:
        self._fd = fd
        self._bound = most_waiting_bytes
        self._changed = threading.Condition()
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._busy = False
        self._closed = False
        self._thread: threading.Thread | None = None
        self.lost = 0  # lines that nobody will read

    def write(self, text: str) -> int:
        """Take whole lines; never blocks. Returns how many characters were taken, as a file does."""
        data = text.encode()
        with self._changed:
            if self._closed or self._waiting_bytes + len(data) > self._bound:
                self.lost += data.count(b"\n")
                return len(text)
            self._waiting.append(data)
            self._waiting_bytes += len(data)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Nothing to do: the thread writes as soon as it can."""

    def close(self, timeout_s: float) -> None:
        """Take no more lines and wait, up to the deadline, until what was taken is written."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._waiting and not self._busy, timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                data, self._waiting = b"".join(self._waiting), []
                self._busy = True
            unwritten = self._write_all(data)
            with self._changed:
                self._waiting_bytes -= len(data)
                self.lost += unwritten
                self._busy = False
                self._changed.notify_all()

    def _write_all(self, data: bytes) -> int:
        """How many lines could not be written."""
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._fd, left) :]
            except OSError:
                return bytes(left).count(b"\n")
        return 0

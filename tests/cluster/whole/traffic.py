"""Steady traffic from a pod beside what a test does: one connection after the other, every failure kept."""

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.cluster.whole.stage import CLIENT, SHOP, WEB, Whole
from tests.support.waiting import eventually

# Dials until its input ends, and says so of each answer; prints how often it worked, what was answered, and what became
# of the rest: when, how long it took, why.
DIAL = """
import json, sys, threading, time, urllib.request
over, good, bad, answers, last = threading.Event(), 0, [], {}, ""
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
while not over.is_set():
    began = time.time()
    try:
        answer = urllib.request.urlopen(sys.argv[1], timeout=10).read(20).decode()
        good, last = good + 1, answer
        answers[answer] = answers.get(answer, 0) + 1
        print("answered", flush=True)
    except OSError as error:
        bad.append([time.strftime("%X", time.gmtime(began)), round(time.time() - began, 2), str(error)])
    time.sleep(0.02)
print(json.dumps({"good": good, "bad": bad, "answers": answers, "last": last}))
"""


@dataclass(slots=True)
class Steady:
    """What became of the requests, once `stop` has been called."""

    process: "subprocess.Popen[str]"
    lines: list[str] = field(default_factory=list)
    good: int = 0
    bad: list[tuple[str, float, str]] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)
    last: str = ""

    def read(self) -> None:
        """Take what it prints, until its end; on a thread of its own, or the pipe would fill up and hold it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    def go_on(self, requests: int = 50) -> None:
        """Return when so many more requests were answered."""
        wanted = len(self.lines) + requests
        eventually(lambda: len(self.lines) >= wanted, 60)

    def stop(self) -> None:
        """Let the last request end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)
        found: dict[str, Any] = json.loads(eventually(lambda: [line for line in self.lines if line[0] == "{"])[0])
        self.good, self.answers, self.last = found["good"], found["answers"], found["last"]
        self.bad = [tuple(one) for one in found["bad"]]


@contextmanager
def steady(whole: Whole, url: str = WEB, pod: str = CLIENT, namespace: str = SHOP) -> Iterator[Steady]:
    """Requests from a pod while the block runs, and until `stop`."""
    command = whole.command(pod, "python3", "-c", DIAL, url, namespace=namespace)
    with (
        ThreadPoolExecutor(1) as pool,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
    ):
        traffic = Steady(process)
        pool.submit(traffic.read)
        try:
            traffic.go_on(1)
            yield traffic
        finally:
            process.kill()
            process.wait()

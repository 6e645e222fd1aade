"""Steady traffic from a pod beside what a test does: one connection after the other, every failure kept."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.cluster.whole.stage import CLIENT, WEB, Whole

# Dials until its input ends; prints how often it worked, what was answered, and what became of the rest: when, how
# long it took, why.
DIAL = """
import json, sys, threading, time, urllib.request
over, good, bad, answers, last = threading.Event(), 0, [], {}, ""
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
print("begun", flush=True)
while not over.is_set():
    began = time.time()
    try:
        answer = urllib.request.urlopen(sys.argv[1], timeout=10).read(20).decode()
        good, last = good + 1, answer
        answers[answer] = answers.get(answer, 0) + 1
    except OSError as error:
        bad.append([time.strftime("%X", time.gmtime(began)), round(time.time() - began, 2), str(error)])
    time.sleep(0.02)
print(json.dumps({"good": good, "bad": bad, "answers": answers, "last": last}))
"""


@dataclass(slots=True)
class Steady:
    """What became of the requests, once `stop` has been called."""

    process: "subprocess.Popen[str]"
    good: int = 0
    bad: list[tuple[str, float, str]] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)
    last: str = ""

    def stop(self) -> None:
        """Let the last request end."""
        out, _ = self.process.communicate(timeout=60)
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
        self.good, self.answers, self.last = found["good"], found["answers"], found["last"]
        self.bad = [tuple(one) for one in found["bad"]]


@contextmanager
def steady(whole: Whole, url: str = WEB, pod: str = CLIENT) -> Iterator[Steady]:
    """Requests from a pod while the block runs, and until `stop`."""
    command = whole.command(pod, "python3", "-c", DIAL, url)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "begun\n"
            yield Steady(process)
        finally:
            process.kill()

"""One holder at a time."""

import threading
from pathlib import Path

from bpf.lock import changing
from bpf.paths import NodePaths


def test_second_holder_waits_for_the_first(tmp_path: Path) -> None:
    paths = NodePaths("n1", tmp_path, tmp_path)
    order = []
    waiting = threading.Event()

    def second() -> None:
        waiting.set()
        with changing(paths):
            order.append("second")

    thread = threading.Thread(target=second)
    with changing(paths):
        thread.start()
        waiting.wait(5)
        thread.join(0.05)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]
    assert paths.lock.exists()


def test_lock_of_another_node_is_another_lock(tmp_path: Path) -> None:
    with changing(NodePaths("n1", tmp_path, tmp_path)), changing(NodePaths("n2", tmp_path, tmp_path)):
        pass

"""What strangers and the pod itself get from the ports of the mesh."""

import contextlib
import os

import pytest

from tests.interop.lab.stage import Lab
from tests.support.sockets import until


@pytest.mark.parametrize(
    ("port", "garbage", "reason"),
    [
        (15006, b"GET / HTTP/1.1\r\n\r\n", "self_call"),
        (15008, b"GET / HTTP/1.1\r\n\r\n", "tls_failed"),
        (15008, os.urandom(4096), "tls_failed"),
    ],
)
def test_garbage_from_the_network_is_closed_and_logged(lab: Lab, port: int, garbage: bytes, reason: str) -> None:
    before = lab.log("node-b").count(f"reason={reason}")
    with contextlib.suppress(OSError), lab.dial("caller", lab.ip("server"), port) as sock:
        sock.sendall(garbage)
        while sock.recv(65536):
            pass
    until(lambda: lab.log("node-b").count(f"reason={reason}") > before, f"a line that says {reason}")
    assert lab.ip("caller") in lab.logged("node-b", f"reason={reason}")


def test_a_connection_to_15001_that_nobody_captured_is_refused_and_logged(lab: Lab) -> None:
    with pytest.raises(OSError):
        say_hello(lab, 15001)
    lab.logged("node-b", "reason=no_note")


@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_the_pod_itself_gets_nothing_from_the_meshs_ports_and_cannot_take_them(lab: Lab, port: int) -> None:
    with pytest.raises(OSError):
        say_hello(lab, port)
    with pytest.raises(OSError):
        lab.listen("server", port)


def say_hello(lab: Lab, port: int) -> None:
    """The pod dials a port of its own loopback; raises unless somebody answers with more than a TLS alert."""
    with lab.dial("server", "127.0.0.1", port) as sock:
        sock.sendall(b"hello, is anybody there?")
        answer = sock.recv(100)
        if answer[:1] in (b"", b"\x15"):
            raise ConnectionResetError("closed without an answer")

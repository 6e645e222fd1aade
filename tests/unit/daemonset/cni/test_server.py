"""The real plugin against the real socket: what the runtime sees in each case."""

import asyncio
import contextlib
import json
import socket as sockets
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from daemonset.cni import server as server_module
from daemonset.cni.protocol import Call, Code, Refused
from daemonset.cni.server import CniServer
from mesh.netns import is_network_namespace
from tests.unit.daemonset.cni.build import SOURCES, compile_c

RESULT = {"cniVersion": "1.0.0", "ips": [{"address": "10.1.2.3/24"}, {"address": "fd00::3/64"}], "dns": {}}

Answer = Callable[[Call], Awaitable[None]]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("cni") / "culvert-cni"
    return compile_c(target, SOURCES / "culvert-cni.c", SOURCES / "json.c")


async def call(
    plugin: Path, config: Mapping[str, Any] | bytes, command: str = "ADD", namespace: str = "shop", **more: str
) -> tuple[int, Any]:
    """The exit status and what was printed, parsed."""
    env = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "c1",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/proc/self/ns/net",
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=web;K8S_POD_UID=u1",
    }
    raw = config if isinstance(config, bytes) else json.dumps(config).encode()
    process = await asyncio.create_subprocess_exec(
        str(plugin), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env | more
    )
    out, err = await process.communicate(raw)
    assert not err, err.decode(errors="replace")[-3000:]
    return process.returncode or 0, json.loads(out) if out.strip() else None


def config(socket: Path, **more: Any) -> dict[str, Any]:
    return {
        "cniVersion": "1.0.0",
        "name": "pods",
        "type": "culvert-cni",
        "socket": str(socket),
        "exclude": ["kube-system", "culvert-system"],
        "prevResult": RESULT,
    } | more


async def with_server(path: Path, answer: Answer, run: Callable[[], Awaitable[Any]], deadline_s: float = 10.0) -> Any:
    async with CniServer(path, answer, deadline_s):
        return await run()


async def agree(call: Call) -> None:
    pass


def test_a_pod_starts_with_the_result_of_the_plugins_before(plugin: Path, tmp_path: Path) -> None:
    seen: list[Call] = []

    async def answer(call: Call) -> None:
        assert call.netns is not None and is_network_namespace(call.netns)
        seen.append(call)

    socket = tmp_path / "cni.sock"
    status, printed = asyncio.run(with_server(socket, answer, lambda: call(plugin, config(socket))))
    assert (status, printed) == (0, RESULT)
    (heard,) = seen
    assert (heard.command, heard.namespace, heard.name, heard.uid, heard.container) == (
        "ADD",
        "shop",
        "web",
        "u1",
        "c1",
    )
    assert [str(address) for address in heard.addresses()] == ["10.1.2.3", "fd00::3"]


def test_no_descriptor_is_left_behind(plugin: Path, tmp_path: Path) -> None:
    def namespaces() -> int:
        found = 0
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                found += str(entry.readlink()).startswith("net:")
        return found

    async def answer(call: Call) -> None:
        raise Refused(Code.TRY_AGAIN_LATER, "no")

    async def run() -> None:
        for _ in range(3):
            await call(plugin, config(socket))

    socket = tmp_path / "cni.sock"
    before = namespaces()
    asyncio.run(with_server(socket, answer, run))
    assert namespaces() == before


def test_a_refusal_reaches_the_runtime_with_code_and_sentence(plugin: Path, tmp_path: Path) -> None:
    async def answer(call: Call) -> None:
        raise Refused(Code.TRY_AGAIN_LATER, 'not captured yet: "ztunnel" is away\n')

    socket = tmp_path / "cni.sock"
    status, printed = asyncio.run(with_server(socket, answer, lambda: call(plugin, config(socket))))
    assert status == 1
    assert printed == {"cniVersion": "1.0.0", "code": 11, "msg": 'not captured yet: "ztunnel" is away\n'}


def test_an_agent_that_finds_no_end_is_an_error_to_be_tried_again(plugin: Path, tmp_path: Path) -> None:
    async def answer(call: Call) -> None:
        await asyncio.Event().wait()

    socket = tmp_path / "cni.sock"
    status, printed = asyncio.run(with_server(socket, answer, lambda: call(plugin, config(socket)), 0.1))
    assert (status, printed["code"]) == (1, 11)


def test_without_an_agent_a_pod_does_not_start_and_the_event_says_where_to_look(plugin: Path, tmp_path: Path) -> None:
    status, printed = asyncio.run(call(plugin, config(tmp_path / "nobody.sock")))
    assert (status, printed["code"]) == (1, 11)
    assert "culvert-node" in printed["msg"] and "nobody.sock" in printed["msg"]


@pytest.mark.parametrize("namespace", ["kube-system", "culvert-system"])
def test_excluded_namespaces_start_without_an_agent(plugin: Path, tmp_path: Path, namespace: str) -> None:
    assert asyncio.run(call(plugin, config(tmp_path / "nobody"), namespace=namespace)) == (0, RESULT)


@pytest.mark.parametrize("namespace", ["kube-system2", "kube", "", "Kube-System"])
def test_a_name_that_only_resembles_an_excluded_one_is_not_excluded(
    plugin: Path, tmp_path: Path, namespace: str
) -> None:
    assert asyncio.run(call(plugin, config(tmp_path / "nobody"), namespace=namespace))[0] == 1


@pytest.mark.parametrize("command", ["DEL", "CHECK", "GC", "STATUS"])
def test_nothing_but_add_fails_without_an_agent(plugin: Path, tmp_path: Path, command: str) -> None:
    assert asyncio.run(call(plugin, config(tmp_path / "nobody"), command))[0] == 0


@pytest.mark.parametrize("raw", [b"", b"not json", b"{}", b"[1]", b'{"cniVersion":"9"}', b"\xff" * 200_000])
def test_a_pod_goes_away_whatever_the_configuration_says(plugin: Path, raw: bytes) -> None:
    assert asyncio.run(call(plugin, raw, "DEL"))[0] == 0


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"not json", 6),
        (b'{"cniVersion":"0.1.0","socket":"/x"}', 1),
        (b'{"socket":"/x"}', 1),
        (b'{"cniVersion":"1.0.0"}', 7),
        (b'{"cniVersion":"1.0.0","socket":"/' + b"x" * 200 + b'"}', 7),
        (b"[" * 200_000, 5),
    ],
)
def test_a_configuration_that_cannot_be_used_is_named(plugin: Path, raw: bytes, code: int) -> None:
    status, printed = asyncio.run(call(plugin, raw))
    assert (status, printed["code"]) == (1, code)


def test_a_namespace_that_is_not_there_is_named(plugin: Path, tmp_path: Path) -> None:
    status, printed = asyncio.run(call(plugin, config(tmp_path / "x"), CNI_NETNS="/run/netns/none"))
    assert (status, printed["code"]) == (1, 4)
    assert "/run/netns/none" in printed["msg"]


def test_an_entry_that_stands_first_is_refused(plugin: Path, tmp_path: Path) -> None:
    alone = config(tmp_path / "cni.sock")
    del alone["prevResult"]
    status, printed = asyncio.run(with_server(tmp_path / "cni.sock", agree, lambda: call(plugin, alone)))
    assert (status, printed["code"]) == (1, 7)
    assert asyncio.run(call(plugin, alone, namespace="kube-system"))[1]["code"] == 7


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_versions_are_negotiated(plugin: Path, version: str) -> None:
    status, printed = asyncio.run(call(plugin, {"cniVersion": version}, "VERSION"))
    assert (status, printed["cniVersion"]) == (0, version)
    assert {"0.3.1", "1.0.0", "1.1.0"} <= set(printed["supportedVersions"])


@pytest.mark.parametrize("packets", [[b""], [b"x"], [b"{}"], [b"{}", b"{}"], [b"\xff", b"{}"], [b"[1]", b"[" * 9999]])
def test_strangers_on_the_socket_do_no_harm(
    plugin: Path, tmp_path: Path, packets: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HEAR_S", 0.1)

    async def run() -> tuple[int, Any]:
        with sockets.socket(sockets.AF_UNIX, sockets.SOCK_SEQPACKET) as stranger:
            stranger.connect(str(path))
            for packet in packets:
                stranger.send(packet)
            return await call(plugin, config(path))

    path = tmp_path / "cni.sock"
    assert asyncio.run(with_server(path, agree, run)) == (0, RESULT)

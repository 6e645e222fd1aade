"""What a process of a node shows and trusts: read anew, and named when it is missing."""

import asyncio
import datetime
import time
from pathlib import Path

import grpc
import pytest

from controller.ca.credential import issue_credential
from mesh.channel import CredentialFault, Credentials, Keepalive, open_channel
from mesh.wire.discovery_pb2 import DeltaDiscoveryRequest, Node
from mesh.xds import ADDRESS_TYPE
from tests.support.mounted import mount
from tests.support.pki import Authority
from tests.support.relay import Relay
from tests.unit.controller.nodes import config, raw_stream, running

PEM = Authority().pem


def test_a_token_is_read_anew_for_each_call(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("one\n")
    credentials = Credentials(tmp_path, token, "east")
    assert dict(credentials.metadata()) == {"clusterid": "east", "authorization": "Bearer one"}
    token.write_text("two")
    assert dict(credentials.metadata())["authorization"] == "Bearer two"
    token.unlink()
    with pytest.raises(CredentialFault, match="token: No such file"):
        credentials.metadata()


def test_a_mounted_file_that_is_swapped_is_a_change(tmp_path: Path) -> None:
    folder = tmp_path / "roots"
    mount(folder, {"roots.pem": PEM})
    credentials = Credentials(tmp_path, tmp_path / "token", roots=folder / "roots.pem")
    stamp = credentials.stamp()
    assert stamp == credentials.stamp()
    mount(folder, {"roots.pem": PEM + Authority().pem})
    assert credentials.stamp() != stamp


@pytest.mark.parametrize("content", [None, "", "nonsense"])
def test_without_roots_nothing_is_trusted_instead(tmp_path: Path, content: str | None) -> None:
    roots = tmp_path / "root-cert.pem"
    if content is not None:
        roots.write_text(content)
    with pytest.raises(CredentialFault, match="root-cert"):
        Credentials(tmp_path, tmp_path / "token", roots=roots).channel_credentials()


def test_a_token_needs_no_certificate_and_without_one_there_must_be_one(tmp_path: Path) -> None:
    (tmp_path / "roots.pem").write_text(PEM)
    assert Credentials(tmp_path, tmp_path / "token").channel_credentials()
    with pytest.raises(CredentialFault, match=r"key\.pem"):
        Credentials(tmp_path).channel_credentials()


@pytest.mark.slow
def test_a_controller_that_is_far_away_or_busy_gets_the_time_for_a_handshake(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(config(tmp_path)) as controller, Relay(controller.port, delay_s=0.2).serving() as relay:
            issue_credential(controller.authority, "cluster.local", "n", tmp_path / "n", datetime.timedelta(hours=1))
            async with open_channel(f"127.0.0.1:{relay.port}", "localhost", Credentials(tmp_path / "n")) as channel:
                call = raw_stream(channel)
                await call.write(DeltaDiscoveryRequest(type_url=ADDRESS_TYPE, node=Node(id="n")).SerializeToString())
                assert await asyncio.wait_for(call.read(), 10), "not a second attempt of the caller's"

    asyncio.run(test())


@pytest.mark.slow
def test_a_controller_that_stands_still_is_noticed(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(config(tmp_path)) as controller, Relay(controller.port).serving() as relay:
            issue_credential(controller.authority, "cluster.local", "n", tmp_path / "n", datetime.timedelta(hours=1))
            address = f"127.0.0.1:{relay.port}"
            async with open_channel(address, "localhost", Credentials(tmp_path / "n"), Keepalive(0.5, 0.5)) as channel:
                call = raw_stream(channel)
                await call.write(DeltaDiscoveryRequest(type_url=ADDRESS_TYPE, node=Node(id="n")).SerializeToString())
                await call.read()
                await asyncio.sleep(1.5)  # and one that is silent is not taken for one that stands still
                assert not call.done()
                relay.stand_still()
                began = time.monotonic()
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await asyncio.wait_for(call.read(), 20)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                assert time.monotonic() - began < 3

    asyncio.run(test())

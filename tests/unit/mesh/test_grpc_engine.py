"""gRPC's way to poll: chosen before it is needed, by names that the installed gRPC knows."""

import subprocess
import sys

from mesh import grpc_engine

SERVER = """
from mesh import grpc_engine
grpc_engine.choose()
import asyncio, grpc.aio
async def serve():
    server = grpc.aio.server()
    server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await server.stop(None)
asyncio.run(serve())
"""


def test_what_a_user_has_set_stands() -> None:
    env = {"GRPC_EXPERIMENTS": "chosen"}
    grpc_engine.choose(env)
    assert env == {"GRPC_EXPERIMENTS": "chosen"}


def test_the_installed_grpc_knows_what_is_switched_off() -> None:
    done = subprocess.run([sys.executable, "-c", SERVER], capture_output=True, text=True, timeout=60, check=True)
    assert "Unknown experiment" not in done.stderr

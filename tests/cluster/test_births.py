"""Controllers that are killed while they make the mesh's root: at each write, before the server has it and after.

controller ──> doorkeeper, who kills it ──> kube-apiserver
"""

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from controller.ca import vault
from controller.ca.distribution import pem
from mesh.kube.api import Api
from mesh.kube.errors import NotFound
from mesh.kube.resources import CONFIG_MAPS, SECRETS
from tests.cluster.alone import ApiAlone
from tests.cluster.doorkeeper import Deed, Doorkeeper, pass_all
from tests.cluster.mesh_objects import fresh
from tests.cluster.objects import define, namespace, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def start(door: Doorkeeper, folder: Path, ns: str) -> "subprocess.Popen[bytes]":
    argv = [sys.executable, "-m", "controller", "serve", f"--state={folder / 'state'}", "--source=kubernetes"]
    argv += [f"--kubeconfig={door.kubeconfig}", "--auth=tokens"]
    argv += ["--ca=kubernetes", f"--ca-namespace={ns}", f"--node-accounts={ns}/culvert-node"]
    argv += [f"--{name}=127.0.0.1:0" for name in ("listen", "metrics-listen", "debug-listen")]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(argv, stdout=log, stderr=log)


async def root_of(api: Api, ns: str) -> str:
    """The root in the Secret, which is whole or not there; empty then."""
    with contextlib.suppress(NotFound):
        return pem(vault.decode(await api.get(SECRETS, "culvert-ca", ns)).certificates)
    return ""


async def published(api: Api, ns: str) -> str:
    with contextlib.suppress(NotFound):
        return str((await api.get(CONFIG_MAPS, "culvert-ca-root", ns))["data"]["roots.pem"])
    return ""


async def give_birth(server: ApiAlone, folder: Path, what: str, moment: str) -> None:
    """One controller is killed at a write, another one follows."""
    api, ns = server.api(), fresh("birth")
    await namespace(api, ns)
    with Doorkeeper(server, folder) as door:
        first = start(door, folder, ns)

        def kill_at_the_write(method: str, path: str) -> Deed:
            if method != "POST" or f"/{ns}/{what}" not in path:
                return Deed()
            if moment == "after":
                return Deed(after=first.kill)
            first.kill()
            return Deed(500)

        door.rule = kill_at_the_write
        try:
            await until(lambda: first.poll() is not None, f"{folder.name}: it is killed")
        finally:
            first.kill()
        left, door.rule = await root_of(api, ns), pass_all
        # The Secret comes first: nothing is served without it.
        assert bool(left) == ((what, moment) != ("secrets", "before"))
        assert bool(await published(api, ns)) == ((what, moment) == ("configmaps", "after"))
        second = start(door, folder, ns)
        try:
            await until(lambda: published(api, ns), f"{folder.name}: the next one has published its root")
            assert await published(api, ns) == await root_of(api, ns)
            assert left in ("", await root_of(api, ns)), "a second root was made"
        finally:
            second.terminate()
            await asyncio.to_thread(second.wait, 20)


def test_whoever_follows_a_killed_controller_finishes_what_it_began(api_server: ApiAlone, tmp_path: Path) -> None:
    cases = [(what, moment) for what in ("secrets", "configmaps") for moment in ("before", "after")]
    for case in cases:
        (tmp_path / "-".join(case)).mkdir()

    async def test() -> None:
        await define(api_server.api())
        async with asyncio.TaskGroup() as group:
            for case in cases:
                group.create_task(give_birth(api_server, tmp_path / "-".join(case), *case))

    asyncio.run(test())

"""The state of trust on a real API server: made once, whole at any moment, not to be broken by what people write."""

import asyncio
import base64
import datetime
import random
from dataclasses import replace
from typing import Any

import pytest

from controller.ca import vault
from controller.ca.issuer import Issuer, IssuerUnavailable
from controller.ca.keeper import Keeper, Terms
from controller.ca.trust import Overlap, Trust
from mesh.aio import Background
from mesh.kube.api import Api
from mesh.kube.errors import NotFound
from mesh.kube.resources import SECRETS
from tests.cluster.alone import ApiAlone
from tests.cluster.mesh_objects import Objects
from tests.support.waiting import until
from tests.unit.controller.ca.hierarchy import files, intermediate, root

pytestmark = pytest.mark.slow

SECOND = datetime.timedelta(seconds=1)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class Everybody:
    """An audience that has heard whatever was published."""

    async def publish(self, trust: Trust) -> bool:
        return True


def keeper(api: Api, namespace: str, *, is_leader: bool = True) -> Keeper:
    terms = Terms(namespace, "cluster.local", Overlap(SECOND, 2 * SECOND), tick_s=0.1)
    return Keeper(api, terms, lambda _: None, lambda: is_leader, Everybody(), now)


def state(one: Keeper) -> Trust:
    assert one.trust is not None
    return one.trust


async def write(api: Api, namespace: str, name: str, contents: dict[str, bytes]) -> None:
    """Make a Secret or replace it, whatever it was."""
    data = {key: base64.b64encode(content).decode() for key, content in contents.items()}
    document: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "data": data,
    }
    try:
        await api.get(SECRETS, name, namespace)
    except NotFound:
        await api.create(SECRETS, document, namespace)
    else:
        await api.replace(SECRETS, document, namespace)


def fresh(above: Issuer | None = None, **options: Any) -> Issuer:
    return intermediate(above or root(now()), now=now(), **options)


def test_controllers_that_start_together_end_up_with_one_root(api_server: ApiAlone) -> None:
    async def test() -> None:
        api = api_server.api()
        namespace = (await Objects.make(api)).namespace
        several = [keeper(api_server.api(), namespace) for _ in range(8)]
        async with asyncio.TaskGroup() as group:
            for one in several:
                group.create_task(one.open())
        assert len({state(one).issuer.certificate for one in several}) == 1
        found = vault.decode(await api.get(SECRETS, "culvert-ca", namespace))
        assert found.issuer.certificate == state(several[0]).issuer.certificate

    asyncio.run(test())


def test_a_controller_that_dies_while_it_makes_the_root_leaves_all_of_it_or_nothing(api_server: ApiAlone) -> None:
    async def test() -> None:
        api = api_server.api()
        chance = random.Random(7)
        seen = set()
        for _ in range(25):
            namespace = (await Objects.make(api)).namespace
            opening = asyncio.get_running_loop().create_task(keeper(api, namespace).open())
            await asyncio.sleep(chance.uniform(0, 0.03))
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
            try:
                vault.decode(await api.get(SECRETS, "culvert-ca", namespace))
                seen.add("whole")
            except NotFound:
                seen.add("nothing")
            following = keeper(api, namespace)
            await following.open()
            kept = vault.decode(await api.get(SECRETS, "culvert-ca", namespace))
            assert kept.issuer.certificate == state(following).issuer.certificate
        assert seen == {"whole", "nothing"}

    asyncio.run(test())


def test_an_issuer_that_is_plugged_in_badly_is_named_and_changes_nothing(api_server: ApiAlone) -> None:
    async def test() -> None:
        api = api_server.api()
        namespace = (await Objects.make(api)).namespace
        good = fresh()
        await write(api, namespace, "cacerts", files(good))
        one = keeper(api, namespace)
        await one.open()
        assert state(one).issuer.certificate == good.certificate
        async with Background() as tasks:
            tasks.start(one.run(), "keeper")
            await write(api, namespace, "cacerts", {**files(fresh()), "ca-key.pem": b"nonsense"})
            await until(lambda: "ca-key.pem" in one.faults.get("cacerts", ""), 20)
            await asyncio.sleep(1.5)
            assert state(one).issuer.certificate == good.certificate
            better = fresh()
            await write(api, namespace, "cacerts", files(better))
            await until(lambda: state(one).issuer.certificate == better.certificate, 20)
            assert not one.faults
            await api.delete(SECRETS, "cacerts", namespace)
            await asyncio.sleep(1.5)
            assert state(one).issuer.certificate == better.certificate

    asyncio.run(test())


def test_whoever_plugs_in_a_bad_issuer_first_gets_no_root_of_ours_instead(api_server: ApiAlone) -> None:
    async def test() -> None:
        api = api_server.api()
        namespace = (await Objects.make(api)).namespace
        await write(api, namespace, "cacerts", {**files(fresh()), "root-cert.pem": root(now()).roots_pem})
        with pytest.raises(IssuerUnavailable, match=r"cacerts.*root-cert\.pem"):
            await keeper(api, namespace).open()
        with pytest.raises(NotFound):
            await api.get(SECRETS, "culvert-ca", namespace)

    asyncio.run(test())


def test_a_secret_that_somebody_broke_is_left_alone_and_one_that_was_deleted_is_made_again(
    api_server: ApiAlone,
) -> None:
    async def test() -> None:
        api = api_server.api()
        namespace = (await Objects.make(api)).namespace
        one, other = keeper(api, namespace), keeper(api, namespace, is_leader=False)
        await one.open()
        await other.open()
        certificate = state(one).issuer.certificate
        async with Background() as tasks:
            tasks.start(one.run(), "leader")
            tasks.start(other.run(), "follower")
            await asyncio.sleep(0.5)
            await write(api, namespace, "culvert-ca", {"ca-cert.pem": b"mine now"})
            await until(lambda: all("root-cert.pem" in each.faults.get("culvert-ca", "") for each in (one, other)), 20)
            assert (await api.get(SECRETS, "culvert-ca", namespace))["data"].keys() == {"ca-cert.pem"}
            assert state(one).issuer.certificate == certificate

            await api.delete(SECRETS, "culvert-ca", namespace)
            await until(lambda: not one.faults and not other.faults, 20)
            assert vault.decode(await api.get(SECRETS, "culvert-ca", namespace)).issuer.certificate == certificate

    asyncio.run(test())


def test_after_storage_was_restored_roots_of_leaves_that_live_stay_trusted(api_server: ApiAlone) -> None:
    async def test() -> None:
        api = api_server.api()
        namespace = (await Objects.make(api)).namespace
        one = keeper(api, namespace)
        one._terms = replace(one._terms, overlap=Overlap(SECOND, 600 * SECOND))
        await one.open()
        old = state(one).issuer.certificate
        backup = await asyncio.to_thread(api_server.save)
        async with Background() as tasks:
            tasks.start(one.run(), "keeper")
            patch = {"metadata": {"annotations": {"culvert.io/rotate-root": "x"}}}
            await api.merge_patch(SECRETS, "culvert-ca", patch, namespace)
            await until(lambda: state(one).phase == "retiring", 20)
            new = state(one).issuer.certificate
            await asyncio.to_thread(api_server.restore, backup)
            await until(lambda: state(one).issuer.certificate == old, 20)
            assert new in state(one).certificates
            async with asyncio.timeout(20):
                while new not in vault.decode(await api.get(SECRETS, "culvert-ca", namespace)).certificates:
                    await asyncio.sleep(0.1)

    asyncio.run(test())

import asyncio
import contextlib
import json
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemonset.runtime import InvalidDocument, RuntimeSource, parse_namespaces, parse_pod

DOCUMENT: dict[str, Any] = {
    "uid": "u1",
    "namespace": "shop",
    "name": "web",
    "service_account": "web-sa",
    "node": "n1",
    "ips": ["10.0.0.5", "fd00::5"],
    "netns": "/run/netns/web",
    "labels": {"app": "web"},
    "annotations": {},
    "host_network": False,
}


def write(directory: Path, name: str, document: Any) -> None:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(document if isinstance(document, str) else json.dumps(document))
    temporary.replace(path)


def test_a_document_says_what_the_pod_is() -> None:
    pod = parse_pod(DOCUMENT)
    assert (pod.full_name, pod.service_account, pod.netns) == ("shop/web", "web-sa", "/run/netns/web")
    assert pod.addresses == (ip_address("10.0.0.5"), ip_address("fd00::5"))
    assert parse_pod(DOCUMENT | {"service_account": None}).service_account == "default"


def test_a_mapped_address_is_its_ipv4_address() -> None:
    assert parse_pod(DOCUMENT | {"ips": ["::ffff:10.0.0.5"]}).addresses == (ip_address("10.0.0.5"),)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"uid": ""}, "uid"),
        ({"name": 5}, "name"),
        ({"ips": "10.0.0.5"}, "ips"),
        ({"ips": ["10.0.0.500"]}, "ips"),
        ({"ips": [7]}, "ips"),
        ({"ips": ["127.0.0.1"]}, "127.0.0.1"),
        ({"ips": ["::"]}, "::"),
        ({"labels": {"a": 1}}, "labels"),
        ({"labels": []}, "labels"),
    ],
)
def test_a_fault_names_its_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidDocument, match=field):
        parse_pod(DOCUMENT | change)


@settings(max_examples=50)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*DOCUMENT, "x"]), inner),
    )
)
def test_any_json_is_a_document_or_a_named_fault(document: Any) -> None:
    for parse in (parse_pod, parse_namespaces):
        with contextlib.suppress(InvalidDocument):
            parse(document)


def test_files_are_read_and_faults_named_by_file(tmp_path: Path) -> None:
    write(tmp_path, "namespaces.json", {"shop": {"labels": {"culvert.io/mesh": "enabled"}}})
    write(tmp_path, "pods/shop_web.json", DOCUMENT)
    write(tmp_path, "pods/shop_bad.json", "{")
    write(tmp_path, "pods/shop_twin.json", DOCUMENT | {"name": "twin"})
    (tmp_path / "pods" / "notes.txt").write_text("not a pod")
    snapshot = RuntimeSource(tmp_path).read()
    assert list(snapshot.pods) == ["u1"]
    assert snapshot.namespaces == {"shop": {"culvert.io/mesh": "enabled"}}
    assert len(snapshot.faults) == 2
    assert any("shop_bad.json: not JSON" in fault for fault in snapshot.faults)
    assert any("u1" in fault and "left out" in fault for fault in snapshot.faults)


def test_a_file_that_turns_bad_keeps_what_it_said_and_one_that_is_gone_does_not(tmp_path: Path) -> None:
    source = RuntimeSource(tmp_path)
    write(tmp_path, "namespaces.json", {"shop": {"labels": {}}})
    write(tmp_path, "pods/shop_web.json", DOCUMENT)
    before = source.read()
    write(tmp_path, "pods/shop_web.json", "[" * 100_000)
    write(tmp_path, "namespaces.json", "[]")
    broken = source.read()
    assert (broken.pods, broken.namespaces) == (before.pods, before.namespaces)
    assert len(broken.faults) == 2
    (tmp_path / "namespaces.json").unlink()
    (tmp_path / "pods" / "shop_web.json").unlink()
    gone = source.read()
    assert gone.pods == {}
    assert gone.namespaces == before.namespaces
    assert len(gone.faults) == 1


def test_an_enormous_file_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, "pods/shop_web.json", " " * (1 << 20) + json.dumps(DOCUMENT))
    assert "larger than" in RuntimeSource(tmp_path).read().faults[0]


def test_changes_are_seen_and_other_files_do_not_matter(tmp_path: Path) -> None:
    async def run() -> None:
        snapshots = RuntimeSource(tmp_path).snapshots()
        async with asyncio.timeout(10):
            assert (await anext(snapshots)).pods == {}
            write(tmp_path, "agent-status.json", {})
            write(tmp_path, "pods/shop_web.json", DOCUMENT)
            assert list((await anext(snapshots)).pods) == ["u1"]
            write(tmp_path, "namespaces.json", {"shop": {"labels": {"a": "b"}}})
            assert (await anext(snapshots)).namespaces == {"shop": {"a": "b"}}
            (tmp_path / "pods" / "shop_web.json").unlink()
            assert (await anext(snapshots)).pods == {}
        await snapshots.aclose()  # type: ignore[attr-defined]

    asyncio.run(run())

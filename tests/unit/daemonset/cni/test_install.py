import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from daemonset.cni.install import TYPE, Installer, NotInstalled, Places, install, remove

PTP = {"type": "ptp", "mtu": 1500}
LIST = {"cniVersion": "1.0.0", "name": "pods", "plugins": [PTP, {"type": "portmap"}]}


@pytest.fixture
def places(tmp_path: Path) -> Places:
    for name in ("bin", "net.d"):
        (tmp_path / name).mkdir()
    (tmp_path / "culvert-cni").write_bytes(b"plugin 1")
    socket = Path("/run/culvert/n1/cni.sock")
    return Places(tmp_path / "culvert-cni", tmp_path / "bin", tmp_path / "net.d", socket, ("kube-system",))


def put(places: Places, name: str, document: Any) -> Path:
    path = places.conf_dir / name
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_entry_stands_last_in_the_first_list_and_nothing_else_changes(places: Places) -> None:
    path = put(places, "10-pods.conflist", LIST)
    other = put(places, "99-other.conflist", LIST)
    assert "added" in install(places)
    entry = {"type": TYPE, "socket": "/run/culvert/n1/cni.sock", "exclude": ["kube-system"]}
    assert read(path) == LIST | {"plugins": [*LIST["plugins"], entry]}
    assert read(other) == LIST
    assert (places.bin_dir / TYPE).read_bytes() == b"plugin 1"
    assert (places.bin_dir / TYPE).stat().st_mode & 0o777 == 0o755
    assert install(places) == ""
    assert sorted(found.name for found in places.conf_dir.iterdir()) == ["10-pods.conflist", "99-other.conflist"]


def test_what_another_installer_overwrote_or_put_behind_us_is_repaired(places: Places) -> None:
    path = put(places, "10-pods.conflist", LIST)
    install(places)
    put(places, "10-pods.conflist", LIST)
    assert install(places)
    document = read(path)
    document["plugins"].append({"type": "bandwidth"})
    put(places, "10-pods.conflist", document)
    install(places)
    assert [entry["type"] for entry in read(path)["plugins"]] == ["ptp", "portmap", "bandwidth", TYPE]


def test_settings_and_plugin_of_another_version_are_replaced(places: Places) -> None:
    path = put(places, "10-pods.conflist", LIST)
    install(places)
    places.plugin.write_bytes(b"plugin 2")
    install(Places(places.plugin, places.bin_dir, places.conf_dir, Path("/run/other.sock")))
    assert (places.bin_dir / TYPE).read_bytes() == b"plugin 2"
    assert [entry for entry in read(path)["plugins"] if entry["type"] == TYPE] == [
        {"type": TYPE, "socket": "/run/other.sock", "exclude": []}
    ]


def test_a_lone_plugin_becomes_a_list_and_comes_back(places: Places) -> None:
    single = {"cniVersion": "0.3.1", "name": "pods", **PTP}
    path = put(places, "10-pods.conf", single)
    install(places)
    made = read(places.conf_dir / "10-pods.conflist")
    assert (made["cniVersion"], made["name"]) == ("0.3.1", "pods")
    assert [entry["type"] for entry in made["plugins"]] == ["ptp", TYPE]
    assert not path.exists()
    assert install(places) == ""
    remove(places)
    assert read(path) == single
    assert [found.name for found in places.conf_dir.iterdir()] == ["10-pods.conf"]


def test_a_lone_plugin_that_its_installer_writes_again_is_taken_in_again(places: Places) -> None:
    put(places, "10-pods.conf", {"cniVersion": "0.3.1", "name": "pods", **PTP})
    install(places)
    put(places, "10-pods.conf", {"cniVersion": "0.3.1", "name": "pods", "type": "bridge"})
    install(places)
    assert [entry["type"] for entry in read(places.conf_dir / "10-pods.conflist")["plugins"]] == ["bridge", TYPE]
    assert not (places.conf_dir / "10-pods.conf").exists()


def test_an_empty_directory_is_waited_for(places: Places) -> None:
    with pytest.raises(NotInstalled, match="no network configuration yet"):
        install(places)
    assert (places.bin_dir / TYPE).exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"plugins": []}', '{"plugins": 3}', "{}", '"x"', "[" * 100_000])
def test_a_file_that_the_runtime_cannot_read_either_is_passed_over(places: Places, text: str) -> None:
    broken = put(places, "05-broken.conflist", text)
    path = put(places, "10-pods.conflist", LIST)
    if text == '{"plugins": 3}':
        with pytest.raises(NotInstalled):
            install(places)
        return
    install(places)
    assert broken.read_text() == text
    assert read(path)["plugins"][-1]["type"] == TYPE


def test_removal_takes_the_entry_out_of_every_file_and_the_plugin_away(places: Places) -> None:
    path = put(places, "10-pods.conflist", LIST)
    install(places)
    other = put(places, "20-old.conflist", read(path))
    assert len(remove(places)) == 3
    assert read(path) == read(other) == LIST
    assert list(places.bin_dir.iterdir()) == []
    assert remove(places) == []


def test_the_mode_of_a_file_is_kept(places: Places) -> None:
    path = put(places, "10-pods.conflist", LIST)
    path.chmod(0o640)
    install(places)
    assert path.stat().st_mode & 0o777 == 0o640


def test_the_installer_follows_the_directory(places: Places) -> None:
    async def run() -> None:
        installer = Installer(places)
        task = asyncio.get_running_loop().create_task(installer.run())
        try:
            await asyncio.sleep(0.05)
            assert "no network configuration yet" in installer.fault
            path = put(places, "10-pods.conflist", LIST)
            for _ in range(100):
                if not installer.fault:
                    break
                await asyncio.sleep(0.02)
            assert read(path)["plugins"][-1]["type"] == TYPE
        finally:
            task.cancel()

    asyncio.run(run())

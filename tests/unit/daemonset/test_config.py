from pathlib import Path

import pytest

from daemonset.config import Config
from mesh.settings import SettingsFault

GOOD = ["--node", "n1", "--runtime", "/run/culvert/l-n1", "--controller", "10.0.0.1:15012"]


def test_the_key_is_the_nodes_name_unless_given() -> None:
    assert Config.load(GOOD, {}).key == "n1"
    config = Config.load([*GOOD, "--key", "l-n1"], {})
    assert (config.key, config.zds_socket) == ("l-n1", Path("/run/culvert/l-n1/ztunnel.sock"))


@pytest.mark.parametrize(
    ("extra", "fault"),
    [
        (["--controller", "nowhere"], "host:port"),
        (["--log-level", "loud"], "--log-level"),
        (["--retry-first-s", "60"], "--retry-first-s"),
        (["--status-port", "70000"], "--status-port"),
        (["--runtime", "/" + "r" * 120], "too long for a unix socket"),
    ],
)
def test_each_fault_names_its_setting(extra: list[str], fault: str) -> None:
    with pytest.raises(SettingsFault, match=fault):
        Config.load([*GOOD, *extra], {})


def test_all_faults_come_at_once() -> None:
    with pytest.raises(SettingsFault) as caught:
        Config.load([*GOOD, "--log-level", "loud", "--status-port", "70000"], {})
    assert len(caught.value.faults) == 2

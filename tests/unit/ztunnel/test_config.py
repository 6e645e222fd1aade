"""Settings of a ztunnel: one report with everything that is wrong."""

import pytest

from mesh.settings import SettingsFault
from ztunnel.config import Config

GOOD = ["--node=n", "--runtime=/x", "--controller=c:15012"]


def faults(*argv: str) -> tuple[str, ...]:
    with pytest.raises(SettingsFault) as caught:
        Config.load(argv, {})
    return caught.value.faults


def test_what_is_needed_is_enough() -> None:
    assert Config.load(GOOD, {}).key == "n"


def test_unreadable_and_unusable_values_are_one_report() -> None:
    found = faults("--runtime=/x", "--controller=c", "--workers=0", "--keepalive-s=soon", "--log-level=loud")
    assert [fault.partition(":")[0] for fault in found] == [
        "--keepalive-s",
        "--node",
        "--controller",
        "--log-level",
        "--workers",
    ]


@pytest.mark.parametrize(
    "given",
    [
        "--controller=c:0",
        "--controller=:1",
        "--controller=c:99999",
        "--admin-port=70000",
        "--metrics-port=65536",
        "--ready-port=65536",
        "--workers=65",
        "--max-connections-per-pod=0",
        "--stream-buffer-bytes=0",
        "--max-handshakes=4294967296",
        "--drain-deadline-s=5000000",
        "--log-format=xml",
    ],
)
def test_a_value_that_cannot_work_is_named(given: str) -> None:
    (found,) = faults(*(argument for argument in GOOD if not given.startswith(argument[:5])), given)
    assert found.startswith(given.partition("=")[0] + ":")

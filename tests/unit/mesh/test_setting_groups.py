import pytest

from mesh.setting_groups import Control, Logs


def test_good_groups_have_no_faults() -> None:
    assert Control(controller="[fd00::1]:15012").faults() == []
    assert Logs().faults() == []


@pytest.mark.parametrize("address", ["nowhere", ":15012", "host:", "host:http"])
def test_controller_without_host_or_port_is_named(address: str) -> None:
    (fault,) = Control(controller=address).faults()
    assert fault.startswith("--controller:")
    assert repr(address) in fault


def test_each_unknown_word_of_logs_is_named_with_those_that_are_known() -> None:
    level, form = Logs(log_level="loud", log_format="xml").faults()
    assert "--log-level: 'loud'" in level
    assert "debug, info, warning, error" in level
    assert "--log-format: 'xml'" in form
    assert "text, json" in form

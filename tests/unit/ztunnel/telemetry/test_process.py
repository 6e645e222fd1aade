"""Figures of the process: policies that it does not understand, by what is in force for them."""

from tests.unit.ztunnel.mesh_builder import authorization, small_shop
from ztunnel.telemetry.process import policies_not_understood


def test_policies_are_counted_by_what_is_in_force_instead() -> None:
    stage = small_shop()

    def counted() -> dict[str, float]:
        return {sample.labels["in_force"]: sample.value for sample in policies_not_understood(stage.store).samples}

    assert counted() == {"deny_all": 0, "version_before": 0, "nothing": 0}
    stage.put(authorization("no-9090", action=2), authorization("new", action=2), authorization("newer", scope=9))
    assert counted() == {"deny_all": 2, "version_before": 1, "nothing": 0}
    stage.put(authorization("new"))
    assert counted() == {"deny_all": 1, "version_before": 1, "nothing": 0}

import dataclasses

import pytest

from daemonset.pods import RefusalKind, wish_of
from tests.unit.daemonset.fakes import pod

ENABLED = {"shop": {"culvert.io/mesh": "enabled"}}
DISABLED = {"shop": {"culvert.io/mesh": "disabled"}}


@pytest.mark.parametrize(
    ("own", "namespaces", "enrol"),
    [
        ({}, {}, False),
        ({}, {"shop": {}}, False),
        ({}, ENABLED, True),
        ({}, DISABLED, False),
        ({"mesh": "enabled"}, {}, True),
        ({"mesh": "enabled"}, DISABLED, True),
        ({"mesh": "disabled"}, ENABLED, False),
    ],
)
def test_the_pods_label_wins_over_its_namespaces(
    own: dict[str, str], namespaces: dict[str, dict[str, str]], enrol: bool
) -> None:
    wish = wish_of(pod(**own), namespaces, "n1", istio_labels=False)
    assert (wish.enrol, wish.refusal) == (enrol, None)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"host_network": True}, RefusalKind.HOST_NETWORK),
        ({"node": "n2"}, RefusalKind.OTHER_NODE),
        ({"netns": ""}, RefusalKind.NO_NAMESPACE),
        ({"addresses": ()}, RefusalKind.NO_ADDRESS),
        ({"labels": {"culvert.io/mesh": "yes"}}, RefusalKind.LABEL),
    ],
)
def test_what_cannot_be_enrolled_has_a_reason(changes: dict[str, object], kind: RefusalKind) -> None:
    refusal = wish_of(dataclasses.replace(pod(), **changes), ENABLED, "n1", istio_labels=False).refusal  # type: ignore[arg-type]
    assert refusal is not None
    assert refusal.kind is kind
    assert str(refusal)


def test_istios_label_enrols_where_it_is_honoured() -> None:
    ambient = {"shop": {"istio.io/dataplane-mode": "ambient"}}
    assert wish_of(pod(), ambient, "n1", istio_labels=True).enrol
    assert not wish_of(pod(), ambient, "n1", istio_labels=False).enrol
    assert not wish_of(pod(mesh="disabled"), ambient, "n1", istio_labels=True).enrol


def test_nobody_is_told_why_a_pod_is_refused_that_never_asked() -> None:
    assert wish_of(dataclasses.replace(pod(), host_network=True), {}, "n1", istio_labels=False).refusal is None

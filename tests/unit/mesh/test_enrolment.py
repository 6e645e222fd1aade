import itertools

import pytest

from mesh.enrolment import ISTIO_LABEL, MESH_LABEL, asked_by


def labels(own: str | None, istio: str | None) -> dict[str, str]:
    return {k: v for k, v in ((MESH_LABEL, own), (ISTIO_LABEL, istio)) if v is not None}


@pytest.mark.parametrize(
    ("pod", "namespace", "enrol"),
    [
        ((None, None), (None, None), False),
        ((None, None), ("enabled", None), True),
        ((None, None), (None, "ambient"), True),
        ((None, None), (None, "none"), False),
        ((None, None), ("disabled", "ambient"), False),
        ((None, None), ("enabled", "none"), True),
        ((None, "ambient"), (None, None), True),
        ((None, "none"), (None, "ambient"), False),
        ((None, "none"), ("enabled", None), False),
        ((None, "ambient"), ("disabled", "none"), True),
        (("enabled", "none"), (None, None), True),
        (("disabled", "ambient"), ("enabled", "ambient"), False),
    ],
)
def test_pod_wins_over_namespace_and_our_label_over_istios(
    pod: tuple[str | None, str | None], namespace: tuple[str | None, str | None], enrol: bool
) -> None:
    asked = asked_by(labels(*pod), labels(*namespace), istio_labels=True)
    assert (asked.enrol, asked.fault) == (enrol, "")


@pytest.mark.parametrize("istio", ["ambient", "none", "sidecar"])
def test_istios_label_is_nothing_unless_it_is_honoured(istio: str) -> None:
    for own, place in itertools.product((None, "enabled", "disabled"), (0, 1)):
        both = [labels(own, None), {}]
        both[place][ISTIO_LABEL] = istio
        assert asked_by(both[0], both[1], istio_labels=False).enrol is (own == "enabled")


@pytest.mark.parametrize(("label", "value"), [(MESH_LABEL, "true"), (MESH_LABEL, ""), (ISTIO_LABEL, "enabled")])
def test_value_that_is_not_known_is_a_fault_and_enrols_nobody(label: str, value: str) -> None:
    for pod, namespace in (({label: value}, {MESH_LABEL: "enabled"}), ({}, {label: value})):
        asked = asked_by(pod, namespace, istio_labels=True)
        assert not asked.enrol
        assert label in asked.fault
        assert repr(value) in asked.fault

import pytest

from cli.checks.before import OLDEST_KERNEL, numbers, platform_of


@pytest.mark.parametrize(
    ("text", "found"),
    [("6.1.0-26-amd64", (6, 1)), ("6.10", (6, 10)), ("1.30+", (1, 30)), ("", ()), ("unknown", ()), ("7", ())],
)
def test_a_version_is_its_first_two_numbers(text, found):
    assert numbers(text) == found


def test_what_is_no_version_counts_as_too_old():
    assert numbers("unknown") < OLDEST_KERNEL < numbers("6.10.3")


def node(provider="", **labels):
    return {"metadata": {"name": "n", "labels": labels}, "spec": {"providerID": provider}}


@pytest.mark.parametrize(
    ("version", "nodes", "found"),
    [
        ("v1.33.4+k3s1", [], "k3s"),
        ("v1.33.4-gke.1134000", [node("gce://p/z/n")], "gke"),
        ("v1.33.3-eks-ace6451", [node("aws:///z/i-1")], "eks"),
        ("v1.33.0", [node(), node(**{"node.openshift.io/os_id": "rhel"})], "openshift"),
        ("v1.33.0", [node("kind://docker/kind/n")], "kind"),
        ("v1.33.4+rke2r1", [node("rke2://n")], "generic"),
        ("v1.33.0", [{"metadata": {"name": "n"}}], "generic"),
    ],
)
def test_the_platform_is_known_by_its_version_or_its_nodes(version, nodes, found):
    assert platform_of(version, nodes) == found

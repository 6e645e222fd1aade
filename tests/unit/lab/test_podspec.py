import pytest

from lab.podspec import InvalidPod, expand, parse_pod


def pod(**spec):
    return {"kind": "Pod", "metadata": {"name": "a", "namespace": "shop"}, "spec": spec}


def container(**fields):
    return {"name": "c", **fields}


def test_command_and_arguments_are_joined_and_expanded():
    one = container(command=["sh", "-c"], args=["echo $(WHO) $$(WHO) $(NOBODY)"], env=[{"name": "WHO", "value": "me"}])
    parsed = parse_pod(pod(containers=[one]), {})
    assert parsed.containers[0].argv == ("sh", "-c", "echo me $(WHO) $(NOBODY)")


def test_variable_may_use_an_earlier_one():
    env = [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)2"}]
    assert parse_pod(pod(containers=[container(env=env)]), {}).containers[0].env == (("A", "1"), ("B", "12"))


def test_field_refs_are_answered():
    env = [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
    assert parse_pod(pod(containers=[container(env=env)]), {"ip": "10.0.0.1"}).containers[0].env == (
        ("IP", "10.0.0.1"),
    )


def test_every_fault_is_named_at_once():
    one = container(
        command="sleep 1",
        ports=[{"containerPort": 70000}],
        env=[{"name": "A", "valueFrom": {"secretKeyRef": {}}}],
        readinessProbe={"periodSeconds": 1},
        volumeMounts=[{"name": "none", "mountPath": "relative"}],
    )
    with pytest.raises(InvalidPod) as caught:
        parse_pod(pod(containers=[one, container()], restartPolicy="Sometimes"), {})
    text = str(caught.value)
    for part in (
        "command",
        "70000",
        "valueFrom",
        "exactly one of",
        "relative",
        "two containers",
        "Sometimes",
        "'none'",
    ):
        assert part in text


@pytest.mark.parametrize("spec", [None, [], "text"])
def test_pod_without_a_spec_is_refused(spec):
    with pytest.raises(InvalidPod, match="spec"):
        parse_pod({"kind": "Pod", "metadata": {"name": "a"}, "spec": spec}, {})


def test_arguments_need_a_command_because_images_are_not_used():
    with pytest.raises(InvalidPod, match="images"):
        parse_pod(pod(containers=[container(image="nginx", args=["-v"])]), {})


def test_fields_without_effect_are_named():
    parsed = parse_pod(pod(containers=[container(lifecycle={})], affinity={}), {})
    assert parsed.unused == ("spec.affinity", "spec.containers[0].lifecycle")


def test_probe_defaults_are_those_of_kubernetes():
    probe = (
        parse_pod(pod(containers=[container(readinessProbe={"tcpSocket": {"port": 80}})]), {}).containers[0].readiness
    )
    assert (probe.tcp_port, probe.period_s, probe.timeout_s, probe.failures, probe.successes) == (80, 10, 1, 3, 1)


def test_boolean_is_no_port():
    with pytest.raises(InvalidPod, match="bool"):
        parse_pod(pod(containers=[container(readinessProbe={"tcpSocket": {"port": True}})]), {})


def test_expand_leaves_unknown_names():
    assert expand("$(A) $(B) $$ $", {"A": "x"}) == "x $(B) $ $"

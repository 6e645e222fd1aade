from cli.install.chart import Chart
from cli.install.cleaner import cleaner_of

CHART = Chart()


def cleaner(*assignments):
    found = CHART.objects(CHART.values((), assignments))
    (node_set,) = [one for one in found if one["kind"] == "DaemonSet"]
    return cleaner_of(node_set)


def test_a_node_is_cleaned_by_the_agents_image_in_the_agents_place():
    pod = cleaner("image=registry/culvert:9")["spec"]["template"]["spec"]
    (remove,) = pod["initContainers"]
    assert remove["image"] == "registry/culvert:9"
    assert "SYS_ADMIN" in remove["securityContext"]["capabilities"]["add"]
    mounts = {one["name"] for one in remove["volumeMounts"]}
    assert {"runtime", "bpffs", "cgroup", "cni-conf"} <= mounts
    assert pod["hostPID"] and pod["hostNetwork"]


def test_nothing_is_mounted_that_goes_before_it():
    pod = cleaner()["spec"]["template"]["spec"]
    assert {"token", "roots"}.isdisjoint(one["name"] for one in pod["volumes"])
    named = {
        one["name"] for container in (*pod["initContainers"], *pod["containers"]) for one in container["volumeMounts"]
    }
    assert named <= {one["name"] for one in pod["volumes"]}


def test_it_needs_no_account_that_may_be_gone_when_its_node_comes_back():
    assert cleaner()["spec"]["template"]["spec"]["automountServiceAccountToken"] is False


def test_without_the_plugin_there_is_no_entry_to_remove():
    (remove,) = cleaner("cni.enabled=false")["spec"]["template"]["spec"]["initContainers"]
    assert "remove-cni" not in remove["command"][-1]
    (remove,) = cleaner()["spec"]["template"]["spec"]["initContainers"]
    assert "remove-cni" in remove["command"][-1]


def test_what_waits_to_be_removed_may_do_nothing():
    (waiter,) = cleaner()["spec"]["template"]["spec"]["containers"]
    assert waiter["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert waiter["volumeMounts"] == []

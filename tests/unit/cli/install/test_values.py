import pytest

from cli.install.values import BadValues, assignments_between, merged

DEFAULTS = {
    "image": "a:1",
    "on": False,
    "replicas": 2,
    "args": [],
    "node": {
        "labels": {},
        "resources": {"requests": {"cpu": "1"}},
        "drain": 3,
        "tolerations": [{"operator": "Exists"}],
    },
}


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("image=b:2", ("image",), "b:2"),
        ("image=2", ("image",), "2"),
        ("on=true", ("on",), True),
        ("replicas=3,on=true", ("replicas",), 3),
        ("args={--a=b,--c}", ("args",), ["--a=b", "--c"]),
        ("args={}", ("args",), []),
        ("args[0]=x,args[1]=y", ("args",), ["x", "y"]),
        (r"image=a\,b", ("image",), "a,b"),
        (r"node.labels.a\.b/c=d", ("node", "labels"), {"a.b/c": "d"}),
        (
            "node.resources.limits.memory=1Gi",
            ("node", "resources"),
            {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}},
        ),
        (
            "node.tolerations[0].key=k,node.tolerations[0].effect=e",
            ("node", "tolerations"),
            [{"key": "k", "effect": "e"}],
        ),
    ],
)
def test_an_assignment_is_read_as_helm_reads_it(text, path, value):
    found = merged(DEFAULTS, (), [text])
    for step in path:
        found = found[step]
    assert found == value


def test_defaults_are_not_changed_by_what_is_set():
    merged(DEFAULTS, (), ["args={a}", "node.labels.x=y"])
    assert DEFAULTS["args"] == []
    assert DEFAULTS["node"]["labels"] == {}


def test_files_come_before_assignments(tmp_path):
    (tmp_path / "a.yaml").write_text("image: c:3\nnode: {drain: 5}\n")
    found = merged(DEFAULTS, [tmp_path / "a.yaml"], ["image=d:4"])
    assert (found["image"], found["node"]["drain"]) == ("d:4", 5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("imgae=b", "imgae: no such setting; did you mean image?"),
        ("node.zzz=1", "node.zzz: no such setting; known: drain, labels"),
        ("on=maybe", "on: takes true or false, not 'maybe'"),
        ("replicas=two", "replicas: takes a whole number, not 'two'"),
        ("replicas=null", "replicas: takes a whole number, not nothing"),
        ("replicas", "takes name=value"),
        ("=1", "takes name=value"),
        ("args[1]=x", "there is no item 1"),
        ("image[0]=x", "image: takes a text"),
        ("node.tolerations=x", "node.tolerations: takes a list"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(text, said):
    with pytest.raises(BadValues) as fault:
        merged(DEFAULTS, (), [text])
    assert said in str(fault.value)


def test_all_faults_are_said_at_once(tmp_path):
    (tmp_path / "bad.yaml").write_text("- a list\n")
    with pytest.raises(BadValues) as fault:
        merged(DEFAULTS, [tmp_path / "bad.yaml", tmp_path / "none.yaml"], ["x=1", "on=3"])
    assert len(str(fault.value).splitlines()) == 4


@pytest.mark.parametrize(
    "assignments",
    [
        ["image=b:2", "on=true", "replicas=3"],
        ["args={--a=b,--c}"],
        [r"image=a\,b", r"node.labels.a\.b/c=d", "node.resources.requests.cpu=2"],
        ["node.tolerations[0].key=k,node.tolerations[0].operator=Equal"],
    ],
)
def test_the_way_from_one_choice_to_another_is_what_set_takes(assignments):
    now, then = merged(DEFAULTS, (), ()), merged(DEFAULTS, (), assignments)
    words = assignments_between(now, then)
    assert merged(DEFAULTS, (), words) == then
    assert assignments_between(then, then) == []

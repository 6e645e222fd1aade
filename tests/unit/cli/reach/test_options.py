import click
import pytest
from click.testing import CliRunner

from cli import enrol
from cli.reach import local, options
from cli.reach.options import reach_options


class Meant:
    def __init__(self, *words):
        self.words = words


@pytest.fixture(autouse=True)
def ways(monkeypatch):
    monkeypatch.setattr(local, "LabReach", lambda name: Meant("lab", name))
    monkeypatch.setattr(local, "NodeReach", lambda key: Meant("node", key))
    monkeypatch.setattr(options.Way, "is_there", property(lambda way: bool(way.context)))
    monkeypatch.setattr(options.Way, "kubeconfig", lambda way: way.context)
    monkeypatch.setattr("cli.reach.cluster.ClusterReach", lambda kubeconfig, namespace: Meant("cluster", kubeconfig))
    monkeypatch.setattr(options.paths, "labs", lambda: ["only"])


def run(*words, environment=None):
    @click.command()
    @reach_options
    def command(where):
        click.echo(" ".join(map(str, where.words)))

    return CliRunner().invoke(command, list(words), env={"CULVERT_LAB": environment})


@pytest.mark.parametrize(
    ("words", "environment", "meant"),
    [
        ((), None, "lab None"),
        ((), "demo", "lab demo"),
        (("--lab", "two"), "demo", "lab two"),
        (("--local", "a"), "demo", "node a"),
        (("--context", "kind"), "demo", "cluster kind"),
        (("--context", "kind"), None, "cluster kind"),
    ],
)
def test_what_is_named_wins_over_what_the_environment_says(words, environment, meant):
    assert run(*words, environment=environment).stdout.strip() == meant


@pytest.mark.parametrize(
    "words",
    [("--lab", "a", "--local", "b"), ("--lab", "a", "--context", "b"), ("--local", "a", "--context", "b")],
)
def test_two_meshes_at_once_are_wrong_usage(words):
    done = run(*words)
    assert done.exit_code == 2
    assert "say one of them" in done.stderr and all(word in done.stderr for word in words[::2])


def test_enrol_takes_the_cluster_that_is_named_before_the_lab_of_the_environment(monkeypatch):
    asked = []
    monkeypatch.setattr(enrol.cluster, "run", lambda way, work: asked.append(way.context) or [])
    done = CliRunner().invoke(enrol.enrol, ["shop", "--context", "kind"], env={"CULVERT_LAB": "demo"})
    assert (done.exit_code, asked) == (0, ["kind"])
    assert CliRunner().invoke(enrol.enrol, ["shop", "--context", "kind", "--lab", "a"]).exit_code == 2

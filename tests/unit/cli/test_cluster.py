import json

import click
import pytest
from click.testing import CliRunner

from cli.cluster import Way, cluster_options, run, told
from mesh.kube.errors import Forbidden, NotFound, Unauthorized, Unavailable
from mesh.kube.kubeconfig import Kubeconfig

WHERE = Kubeconfig(("a",), "dev")


@pytest.mark.parametrize(
    ("fault", "advice"),
    [
        (Unauthorized("no", 401), "log in anew"),
        (Forbidden("no", 403), "ask for that right"),
        (Unavailable("no", 0), "is that cluster meant, and up?"),
    ],
)
def test_a_fault_names_who_asked_and_what_to_do(fault, advice):
    sentence, rest = told(fault, WHERE).split("\n")
    assert sentence == "the API server: no"
    assert "kubeconfig a, context dev" in rest and advice in rest


def test_a_fault_that_says_all_gets_no_advice():
    assert told(NotFound("no", 404), WHERE, "pod p") == "pod p: no"


def invoked(monkeypatch, tmp_path, *words, env=None):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path)

    async def work(api):
        return api.transport.host

    @click.command()
    @cluster_options
    def command(way: Way) -> None:
        click.echo(run(way, work))

    return CliRunner().invoke(command, list(words), env={"KUBECONFIG": "", **(env or {})})


def test_a_context_of_the_kubeconfig_can_be_named(monkeypatch, tmp_path):
    names = ("one", "two")
    found = {
        "current-context": "one",
        "clusters": [{"name": name, "cluster": {"server": f"https://{name}"}} for name in names],
        "contexts": [{"name": name, "context": {"cluster": name, "user": "u"}} for name in names],
        "users": [{"name": "u", "user": {}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(found))
    assert invoked(monkeypatch, tmp_path, "--kubeconfig", str(path)).stdout == "https://one\n"
    assert invoked(monkeypatch, tmp_path, "--context", "two", env={"KUBECONFIG": str(path)}).stdout == "https://two\n"
    done = invoked(monkeypatch, tmp_path, "--kubeconfig", str(path), "--context", "three")
    assert done.exit_code == 1 and "known: one, two" in done.stderr


@pytest.mark.parametrize(
    ("words", "env", "said"),
    [
        ((), {}, "There is no kubeconfig"),
        (("--context", "x"), {}, "--context x: there is no kubeconfig"),
        ((), {"KUBECONFIG": "/nowhere"}, "KUBECONFIG is /nowhere"),
    ],
)
def test_without_a_cluster_the_sentence_says_what_is_missing(monkeypatch, tmp_path, words, env, said):
    done = invoked(monkeypatch, tmp_path, *words, env=env)
    assert done.exit_code == 1
    assert said in done.stderr

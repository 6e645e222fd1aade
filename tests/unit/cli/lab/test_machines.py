import click
import pytest
from click.testing import CliRunner

from cli.lab.life import up
from cli.lab.machines import check_local, span_of, token
from lab import paths


@pytest.fixture
def secret(tmp_path):
    file = tmp_path / "token"
    file.write_text("x")
    return file


def test_options_become_one_value(secret):
    assert span_of(None, None, None, None).to_json() == '{"listen": "", "join": "", "local": [], "token_file": ""}'
    assert span_of("192.0.2.1", None, "a, b", None).local == ("a", "b")
    assert span_of(None, "192.0.2.1:8", "b", secret).token_file == str(secret)


@pytest.mark.parametrize(
    ("listen", "join", "local", "with_token", "fault"),
    [
        ("192.0.2.1", "192.0.2.2", "a", True, "--listen is for the first machine"),
        ("192.0.2.1", None, None, False, "--local says which nodes"),
        (None, "192.0.2.1", "a,b", True, "runs one node"),
        (None, "192.0.2.1", "a", False, "--token-file"),
        (None, None, "a", False, "for a lab on several machines"),
        ("somewhere", None, "a", False, "--listen somewhere"),
        (None, "192.0.2.1:0", "a", True, "'0' is not a port"),
        ("192.0.2.1", None, "Node", False, "'Node' cannot name a node"),
    ],
)
def test_what_does_not_go_together_is_said(secret, listen, join, local, with_token, fault):
    with pytest.raises(click.UsageError, match=fault):
        span_of(listen, join, local, secret if with_token else None)


def test_node_of_this_machine_is_a_node_of_the_lab():
    nodes = [{"metadata": {"name": "node-a"}}]
    check_local(span_of("192.0.2.1", None, "node-a", None), nodes)
    with pytest.raises(click.UsageError, match="the nodes of this lab are node-a"):
        check_local(span_of("192.0.2.1", None, "node-c", None), nodes)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ([], "a DIRECTORY of manifests is missing"),
        ([".", "--join", "192.0.2.1", "--local", "b", "--token-file", "TOKEN"], "the first machine has the manifests"),
    ],
)
def test_manifests_belong_to_the_first_machine(secret, words, fault):
    done = CliRunner().invoke(up, [str(secret) if word == "TOKEN" else word for word in words])
    assert done.exit_code == 2
    assert fault in done.output


def test_token_of_a_lab_on_one_machine_does_not_exist(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "LABS", tmp_path)
    (tmp_path / "one").mkdir()
    done = CliRunner().invoke(token, ["--lab", "one"])
    assert done.exit_code == 1
    assert "on this machine alone" in done.output
    (tmp_path / "one" / "token").write_text("secret\n")
    assert CliRunner().invoke(token, ["--lab", "one"]).output == "secret\n"

"""Settings of both commands: everything that is wrong at once, exit 2, before anything heavy is loaded."""

import subprocess
import sys
from pathlib import Path

import pytest

from controller.config import Config, CredentialConfig, split_address
from mesh.settings import SettingsFault


def faults(*argv: str) -> str:
    with pytest.raises(SettingsFault) as caught:
        Config.load(argv, {})
    return "\n".join(caught.value.faults)


def test_defaults_and_flags(tmp_path: Path) -> None:
    config = Config.load(
        ["--source=files", f"--manifests={tmp_path}", f"--state={tmp_path}", "--istio-labels"],
        {"CULVERT_TRUST_DOMAIN": "prod.example"},
    )
    assert config.mesh.istio_labels
    assert config.mesh.trust_domain == "prod.example"
    assert config.mesh.root_namespace == "culvert-system"
    assert "culvert-controller.culvert-system.svc" in config.serve.dns_names


def test_every_wrong_value_is_told_at_once(tmp_path: Path) -> None:
    told = faults(
        f"--state={tmp_path}",
        "--source=etcd",
        "--listen=nowhere",
        "--debug-listen=0.0.0.0:1",
        "--trust-domain=Not A Domain",
        "--addresses=10.0.0.1,x",
        "--log-level=loud",
        "--leaf-ttl-s=0",
        "--root-namespace=",
    )
    for flag in (
        "source",
        "listen",
        "debug-listen",
        "trust-domain",
        "addresses",
        "log-level",
        "leaf-ttl-s",
        "root-namespace",
    ):
        assert f"--{flag}:" in told


def test_missing_and_unknown_settings_are_told_together() -> None:
    told = faults("--statee=x")
    assert "--statee" in told
    assert "--state: missing" in told


def test_a_missing_manifest_directory_is_a_fault(tmp_path: Path) -> None:
    assert "is not a directory" in faults(f"--state={tmp_path}", f"--manifests={tmp_path / 'none'}")
    assert "--manifests: missing" in faults(f"--state={tmp_path}")


def test_credential_settings() -> None:
    good = CredentialConfig.load(["--state=/s", "--node=n.example", "--out=/o"], {})
    assert good.node == "n.example"
    with pytest.raises(SettingsFault) as caught:
        CredentialConfig.load(["--state=/s", "--node=a/b", "--out=/o", "--ttl-s=0", "--trust-domain=!"], {})
    assert len(caught.value.faults) == 3


@pytest.mark.parametrize("text", ["[::1]:80", "127.0.0.1:0", "0.0.0.0:65535"])
def test_addresses(text: str) -> None:
    host, port = split_address(text)
    assert f"{f'[{host}]' if ':' in host else host}:{port}" == text


@pytest.mark.parametrize(
    "text", ["", ":80", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "localhost:80", "1.2.3.4:-1"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        split_address(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "status"), [([], 2), (["--help"], 0), (["serve", "--help"], 0), (["serve", "--x"], 2)]
)
def test_wrong_settings_end_the_process_without_loading_grpc(argv: list[str], status: int) -> None:
    script = (
        "import sys; from controller.__main__ import main; code = main(sys.argv[1:]);"
        "assert 'grpc' not in sys.modules and 'kubernetes' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert (done.stderr if status else done.stdout).strip()


@pytest.mark.slow
def test_serving_does_not_load_the_kubernetes_client() -> None:
    script = "import sys, controller.app; sys.exit('kubernetes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0

"""A directory of manifests as a source: what is broken takes nothing else with it, and last good versions stay."""

import json
from pathlib import Path

import pytest
import yaml

from controller.index.objects import AuthorizationPolicy, Change, Kind
from controller.sources.documents import read_manifest
from controller.sources.files import ManifestDirectory
from tests.unit.controller.nodes import pod, policy

GOOD = yaml.safe_dump(pod("good", "10.0.0.1"))


def keys(changes: list[Change]) -> dict[str, bool]:
    """Key -> whether it is there."""
    return {f"{one.kind.value} {one.key}": one.object is not None for one in changes}


@pytest.fixture
def directory(tmp_path: Path) -> ManifestDirectory:
    return ManifestDirectory(tmp_path)


def test_nested_directories_json_lists_and_several_documents(tmp_path: Path, directory: ManifestDirectory) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "a.yml").write_text(f"# head\n---\n{GOOD}---\n\n--- # empty\n")
    items = [pod("one", "10.0.0.2"), pod("two", "10.0.0.3")]
    (tmp_path / "list.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    (tmp_path / ".hidden.yaml").write_text("{{{")
    (tmp_path / "notes.txt").write_text("{{{")
    assert keys(directory.look()) == {"Pod shop/good": True, "Pod shop/one": True, "Pod shop/two": True}
    assert directory.faults == []


def test_looking_again_finds_only_what_differs(tmp_path: Path, directory: ManifestDirectory) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    assert len(directory.look()) == 1
    assert directory.look() == []
    (tmp_path / "a.yaml").write_text(GOOD + "# a comment changes nothing\n")
    assert directory.look() == []
    (tmp_path / "a.yaml").unlink()
    assert keys(directory.look()) == {"Pod shop/good": False}


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("kind: Pod\n  apiVersion: [", "mapping values"),
        ("just text", "must be a mapping"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {}", "is missing"),
        ("kind: Pod\nmetadata: {name: x}", "is missing"),
        ("- a\n- b", "must be a mapping"),
        ("a: &x [*x]", "kind"),
        ("kind: Pod\nspec: {action: DENY, action: ALLOW}", "'action' stands twice"),
        ("kind: Pod\nspec: {? [a, b] : 1}", "unhashable"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
    ],
)
def test_a_broken_document_is_reported_with_its_line_and_the_rest_is_taken(broken: str, says: str) -> None:
    manifest = read_manifest(f"{GOOD}---\n{broken}\n---\n{yaml.safe_dump(pod('after', '10.0.0.2'))}", "f.yaml")
    assert {key for _, key in manifest.objects} == {"shop/good", "shop/after"}
    (fault,) = manifest.faults
    assert fault.place == f"f.yaml:{GOOD.count(chr(10)) + 1}"
    assert says in str(fault)


def test_last_good_version_of_a_broken_object_stays_in_force(tmp_path: Path, directory: ManifestDirectory) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump(policy("p", {"action": "DENY", "rules": [{}]})))
    directory.look()
    path.write_text(yaml.safe_dump(policy("p", {"action": "DENNY"})))
    assert directory.look() == []
    assert str(directory.faults[0]).startswith("p.yaml: AuthorizationPolicy shop/p: spec.action")
    path.write_text(yaml.safe_dump(policy("p", {"action": "DENY", "rules": []})))
    (change,) = directory.look()
    assert isinstance(change.object, AuthorizationPolicy)
    assert change.object.rules == ()
    assert directory.faults == []


def test_a_policy_of_an_unknown_version_is_named_and_its_last_good_one_stays(
    tmp_path: Path, directory: ManifestDirectory
) -> None:
    path = tmp_path / "p.yaml"
    good = yaml.safe_dump(policy("p", {"action": "DENY", "rules": [{}]}))
    path.write_text(good)
    directory.look()
    path.write_text(good.replace("security.istio.io/v1", "security.istio.io/v7"))
    assert directory.look() == []
    (fault,) = directory.faults
    assert (fault.object, fault.field) == ("AuthorizationPolicy shop/p", "apiVersion")


def test_a_file_that_becomes_unreadable_loses_nothing(tmp_path: Path, directory: ManifestDirectory) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(GOOD)
    directory.look()
    for garbage in (b"\xff\xfe\x00", b"{{{", b"a: b: c"):
        path.write_bytes(garbage)
        assert directory.look() == []
        assert len(directory.faults) == 1
    path.write_text("")
    assert keys(directory.look()) == {"Pod shop/good": False}


def test_a_directory_that_vanishes_loses_nothing_and_is_followed_when_it_is_back(tmp_path: Path) -> None:
    root = tmp_path / "manifests"
    root.mkdir()
    (root / "a.yaml").write_text(GOOD)
    directory = ManifestDirectory(root)
    directory.look()
    (root / "a.yaml").rename(tmp_path / "kept")
    root.rmdir()
    assert directory.look() == []
    assert "cannot be read" in str(directory.faults[0])
    root.mkdir()
    assert keys(directory.look()) == {"Pod shop/good": False}
    assert directory.faults == []


def test_an_object_in_two_files_counts_once_and_the_other_is_reported(
    tmp_path: Path, directory: ManifestDirectory
) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(pod("good", "10.0.0.9")))
    (change,) = directory.look()
    assert getattr(change.object, "addresses", None) == (bytes([10, 0, 0, 1]),)
    assert "stands in a.yaml too" in str(directory.faults[0])
    (tmp_path / "a.yaml").unlink()
    (change,) = directory.look()
    assert getattr(change.object, "addresses", None) == (bytes([10, 0, 0, 9]),)
    assert directory.faults == []


def test_unknown_kinds_are_skipped_and_said_once(
    tmp_path: Path, directory: ManifestDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    text = yaml.safe_dump({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}})
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "b.yaml").write_text(text)
    with caplog.at_level("INFO"):
        assert directory.look() == []
    assert directory.faults == []
    assert caplog.text.count("apps/v1 Deployment") == 1


def test_times_stay_text_so_that_the_oldest_policy_can_be_found(tmp_path: Path, directory: ManifestDirectory) -> None:
    document = policy("p", {}, "PeerAuthentication")
    text = yaml.safe_dump(document).replace("metadata:\n", "metadata:\n  creationTimestamp: 2026-01-01T00:00:00Z\n")
    (tmp_path / "p.yaml").write_text(text)
    (change,) = directory.look()
    assert change.kind is Kind.PEER_AUTHENTICATION
    assert getattr(change.object, "created", None) == "2026-01-01T00:00:00Z"

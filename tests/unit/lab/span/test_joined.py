import pytest

from lab.span.joined import LabEnded, _credentials, _update, _welcome, keep_credentials
from lab.span.link import LinkLost

FILES = {"key.pem": "k", "cert.pem": "c", "roots.pem": "r"}
WELCOME = {"lab": "a", "with_mesh": True, "settings": "{}", "life": "x", "index": 2}
POD = {"kind": "Pod", "metadata": {"namespace": "shop", "name": "web", "uid": "u"}}
UPDATE = {"number": 1, "full": True, "put": [POD], "gone": [["Pod", "shop", "old"]], "nodes": {"n": 1}, "peers": []}


def test_credentials_are_for_root_alone(tmp_path):
    keep_credentials(tmp_path / "credentials", FILES)
    keep_credentials(tmp_path / "credentials", {**FILES, "key.pem": "new"})
    assert {p.name: p.read_text() for p in (tmp_path / "credentials").iterdir()} == {**FILES, "key.pem": "new"}
    assert (tmp_path / "credentials" / "key.pem").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "credentials").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("body", [{**FILES, "../../x": "y"}, {**FILES, "key.pem": 1}])
def test_home_cannot_write_other_files(body):
    with pytest.raises(LinkLost):
        _credentials("credentials", body)


def test_well_formed_messages_are_taken():
    assert _credentials("credentials", FILES) == FILES
    assert _welcome("welcome", WELCOME).index == 2
    assert _update("update", UPDATE).gone[0].name == "old"


@pytest.mark.parametrize(
    "change", [{"index": 0}, {"index": 201}, {"index": True}, {"lab": 1}, {"more": 1}, {"settings": None}]
)
def test_malformed_welcome_is_refused(change):
    with pytest.raises(LinkLost, match="no welcome"):
        _welcome("welcome", {**WELCOME, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"put": [{}]},
        {"put": 1},
        {"gone": [["Pod"]]},
        {"nodes": {"n": 0}},
        {"nodes": []},
        {"number": "1"},
        {"peers": ["x"]},
    ],
)
def test_malformed_update_is_refused(change):
    with pytest.raises(LinkLost, match="no update"):
        _update("update", {**UPDATE, **change})


def test_end_of_the_lab_is_heard_at_any_time():
    with pytest.raises(LabEnded):
        _credentials("down", {})

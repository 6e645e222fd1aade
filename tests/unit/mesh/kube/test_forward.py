import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from mesh.kube.errors import Forbidden, Unavailable
from mesh.kube.forward import Forwarder
from mesh.kube.kubeconfig import Kubeconfig, configuration


class Refusing(BaseHTTPRequestHandler):
    """An API server that forwards no port."""

    def do_GET(self):
        body = json.dumps({"kind": "Status", "message": 'pods "p" is forbidden: User "u" cannot'}).encode()
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with HTTPServer(("127.0.0.1", 0), Refusing) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def forwarder(tmp_path, port):
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "c"}}
    found = {"current-context": "c", "clusters": [cluster], "contexts": [context], "users": [{"name": "c", "user": {}}]}
    path = tmp_path / "config"
    path.write_text(json.dumps(found))
    return Forwarder(configuration(Kubeconfig((path,))))


def test_a_refusal_is_the_sentence_of_the_api_server_and_nothing_around_it(server, tmp_path):
    with pytest.raises(Forbidden) as found:
        forwarder(tmp_path, server.server_port).get("n", "p", 15000, "/x")
    assert str(found.value) == 'port 15000 of pod n/p: 403: pods "p" is forbidden: User "u" cannot'
    assert found.value.status == 403
    assert found.value.sentence == 'pods "p" is forbidden: User "u" cannot'


def test_a_server_that_is_not_there_is_unavailable(server, tmp_path):
    found = forwarder(tmp_path, 1)
    with pytest.raises(Unavailable, match=r"port 15000 of pod n/p: .*refused"):
        found.get("n", "p", 15000, "/x")

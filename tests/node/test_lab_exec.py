"""`lab exec` against one idle pod: what goes in, what comes out, and what is left when somebody dies."""

import fcntl
import hashlib
import json
import os
import pty
import select
import shlex
import signal
import struct
import subprocess
import termios
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.node.lab_stage import CULVERT, ROOT, culvert, lab, start
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces: needs root")]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    manifests = tmp_path_factory.mktemp("manifests")
    env = [{"name": "COLOUR", "value": "blue"}]
    containers = [
        {"name": "one", "workingDir": "/usr", "env": env},
        {"name": "two", "securityContext": {"runAsUser": 65534}},
    ]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": containers}}
    (manifests / "pod.json").write_text(json.dumps(pod))
    with lab("exec", manifests, "--nodes", "1") as own:
        yield own


def arguments(own, *argv, options=()):
    return ["lab", "exec", "--lab", own, *options, "default/a", "--", *argv]


def run(own, *argv, options=(), **more):
    return culvert(*arguments(own, *argv, options=options), **more)


def children_of(marker):
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(marker):
                found.append(process.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@contextmanager
def group(own, *argv):
    """`lab exec` as a process group of its own, killed at the end: a stopped one would be waited for forever."""
    with start(
        *arguments(own, *argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, process_group=0
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("status", [0, 1, 2, 42, 125, 255])
def test_exit_status_is_the_commands(own, status):
    assert run(own, "sh", "-c", f"exit {status}").returncode == status


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_command_that_a_signal_ended_gives_128_and_the_signal(own, number):
    assert run(own, "sh", "-c", f"kill -{int(number)} $$").returncode == 128 + number


def test_missing_and_unexecutable_commands_are_told_apart(own):
    missing, unexecutable = run(own, "no-such-program"), run(own, "/etc/passwd")
    assert (missing.returncode, unexecutable.returncode) == (127, 126)
    assert "no-such-program: not found" in missing.stderr


def test_file_that_names_a_missing_interpreter_is_there_but_cannot_be_run(own, tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    done = run(own, str(script))
    assert done.returncode == 126
    assert "interpreter" in done.stderr
    empty = run(own, "")
    assert (empty.returncode, "not found" in empty.stderr) == (127, True)


def test_output_and_error_stay_apart(own):
    done = run(own, "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_100_mb_pass_through_unchanged(own):
    data = os.urandom(1 << 20) * 100
    done = run(own, "cat", input=data, text=False)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


def test_1_gib_goes_in_unchanged(own):
    block = os.urandom(1 << 20)
    process = start(*arguments(own, "sha256sum"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    sent = hashlib.sha256()
    for _ in range(1024):
        process.stdin.write(block)
        sent.update(block)
    out, _ = process.communicate(timeout=60)
    assert out.split()[0].decode() == sent.hexdigest()


def test_end_of_input_reaches_the_command(own):
    assert run(own, "wc", "-c", input="").stdout.strip() == "0"


def test_arguments_arrive_as_they_are(own):
    odd = ["", " ", "a\nb", "$HOME", "--lab", "--", "'\"\\", "ü"]
    done = run(own, "python3", "-c", "import sys, json; print(json.dumps(sys.argv[1:]))", *odd)
    assert json.loads(done.stdout) == odd


def test_environment_and_directory_are_the_containers(own):
    done = run(
        own, "sh", "-c", "echo $COLOUR $HOSTNAME $(hostname) $PWD $CULVERT_LAB", env={**os.environ, "CULVERT_LAB": own}
    )
    assert done.stdout.split() == ["blue", "a", "a", "/usr"]
    other = run(own, "sh", "-c", 'echo "$COLOUR $PWD $(id -u) $HOME"', options=("-c", "two"))
    assert other.stdout == " / 65534 /nonexistent\n"  # as the user database has it


def test_callers_environment_stays_outside_a_pod_and_comes_along_to_a_node(own):
    env = {**os.environ, "FROM_OUTSIDE": "yes"}
    assert run(own, "sh", "-c", 'echo "<$FROM_OUTSIDE>"', env=env).stdout == "<>\n"
    words = ("lab", "exec", "--lab", own, "node/node-1", "--", "sh", "-c", 'echo "$FROM_OUTSIDE $PWD"')
    assert culvert(*words, env=env).stdout == f"yes {ROOT}\n"


def test_wrong_pod_is_answered_with_those_that_may_be_meant(own):
    for target, words in (("default/aa", "did you mean default/a?"), ("shop/a", "did you mean default/a?"),
                          ("zz/zz", "these do: default/a")):  # fmt: skip
        done = culvert("lab", "exec", "--lab", own, target, "--", "true")
        assert done.returncode == 1
        assert words in done.stderr


def test_input_that_is_closed_early_or_never_there_harms_nothing(own):
    with start(*arguments(own, "head", "-c", "1"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as writer:
        with pytest.raises(BrokenPipeError):
            while True:
                writer.stdin.write(b"x" * 65536)
        assert writer.stdout.read() == b"x"
        assert writer.wait(5) == 0
    closed = subprocess.run(
        ["sh", "-c", '"$@" <&-', "sh", *CULVERT, *arguments(own, "sh", "-c", "echo out; exit 3")],
        capture_output=True, text=True, check=False, cwd=ROOT)  # fmt: skip
    assert (closed.stdout, closed.returncode) == ("out\n", 3)


def test_reader_that_leaves_ends_the_command(own):
    process = start(*arguments(own, "yes"), stdout=subprocess.PIPE)
    process.stdout.read(2)
    process.stdout.close()
    assert process.wait(5) == 128 + signal.SIGPIPE


def test_exec_ends_with_the_pod_that_is_deleted(own):
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "short"}, "spec": {"containers": [{"name": "c"}]}}
    assert culvert("lab", "apply", "--lab", own, "-f", "-", input=json.dumps(pod)).returncode == 0
    words = ["lab", "exec", "--lab", own, "default/short", "--", "sh", "-c", "trap '' TERM; echo up; sleep 1000; echo"]
    with start(*words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "up\n"
        assert culvert("lab", "delete", "--lab", own, "pod", "default/short", "--grace", "0.1").returncode == 0
        assert process.wait(5) == 128 + signal.SIGKILL
    assert culvert(*words).returncode == 1


def test_names_resolve_as_in_a_pod_of_kubernetes_also_without_libc(own):
    """Through getaddrinfo in both families, and through a resolver that reads /etc/resolv.conf itself (busybox)."""
    item = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"ports": [{"port": 80}], "ipFamilyPolicy": "PreferDualStack"}}  # fmt: skip
    assert culvert("lab", "apply", "--lab", own, "-f", "-", input=json.dumps(item)).returncode == 0
    found = json.loads(culvert("lab", "get", "--lab", own, "service", "default/web").stdout)
    ips = sorted(found["spec"]["clusterIPs"])
    names = ["web", "web.default", "web.default.svc", "web.default.svc.cluster.local"]
    script = "import socket, sys\nfor n in sys.argv[1:]: print(*sorted({a[4][0] for a in socket.getaddrinfo(n, 80)}))"
    done = run(own, "python3", "-c", script, *names)
    assert [line.split() for line in done.stdout.splitlines()] == [ips] * 4, done.stderr
    unknown = run(own, "getent", "hosts", "web.other")
    assert unknown.returncode == 2
    fqdn = run(own, "python3", "-c", RAW_QUESTION, names[-1])
    assert sorted(fqdn.stdout.split()) == ips


RAW_QUESTION = """
import ipaddress, socket, struct, sys
server = next(line.split()[1] for line in open('/etc/resolv.conf') if line.startswith('nameserver'))
for kind, size in ((1, 4), (28, 16)):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(5)
    name = b''.join(bytes([len(part)]) + part.encode() for part in sys.argv[1].split('.')) + bytes(1)
    sock.sendto(struct.pack('!6H', 7, 256, 1, 0, 0, 0) + name + struct.pack('!2H', kind, 1), (server, 53))
    print(ipaddress.ip_address(sock.recv(512)[-size:]))
"""


def test_unknown_targets_are_named_and_end_with_1(own):
    for target in ("default/b", "a/b/c", "../a", "node/none"):
        done = culvert("lab", "exec", "--lab", own, target, "--", "true")
        assert done.returncode == 1
        assert target.rpartition("/")[2] in done.stderr
    assert "only one, two" in run(own, "true", options=("-c", "three")).stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_signals_reach_the_command(own, number):
    script = f"trap 'echo got; exit 5' {int(number)}; echo up; while :; do sleep 0.05; done"
    process = start(*arguments(own, "sh", "-c", script), stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "up\n"
    process.send_signal(number)
    assert process.communicate(timeout=5)[0] == "got\n"
    assert process.returncode == 5


@pytest.mark.parametrize("options", [(), ("-t",)])
def test_killing_the_caller_ends_the_command_and_its_children(own, options):
    seconds = str(1000 + os.getpid() % 1000 + len(options) * 0.5)
    process = start(
        *arguments(own, "sh", "-c", f"sleep {seconds} & sleep {seconds}; echo", options=options),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    marker = f"sleep\0{seconds}".encode()
    eventually(lambda: len(children_of(marker)) == 2)
    process.kill()
    process.communicate()
    eventually(lambda: not children_of(marker))


def test_background_process_outlives_a_command_that_ends_by_itself(own):
    marker = f"sleep\x00{2000 + os.getpid() % 1000}"
    assert run(own, "sh", "-c", f"{marker.replace(chr(0), ' ')} >/dev/null 2>&1 </dev/null &").returncode == 0
    time.sleep(0.1)
    assert len(children_of(marker.encode())) == 1
    run(own, "pkill", "-f", marker.replace("\0", " "))
    eventually(lambda: not children_of(marker.encode()))


def test_killing_by_name_inside_does_not_reach_the_caller(own):
    assert run(own, "pkill", "-f", f"lab exec .*{own}").returncode == 1  # nothing in the pod is called so


def test_terminal_has_the_callers_size_follows_it_and_passes_control_c(own):
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(CULVERT[0], [*CULVERT, *arguments(own, "sh")])
    try:
        resize(master, 40, 100)
        os.kill(pid, signal.SIGWINCH)
        expect(master, b"# ")
        os.write(master, b"stty size\n")
        expect(master, b"40 100")
        resize(master, 50, 120)
        time.sleep(0.1)
        os.write(master, b"stty size\n")
        expect(master, b"50 120")
        os.write(master, b"sleep 1000\n")
        time.sleep(0.2)
        os.write(master, b"\x03")
        os.write(master, b"echo in$((1+1))\n")
        expect(master, b"in2")
        os.write(master, b"exit 9\n")
        drain(master)
    finally:
        code = end(pid, master)
    assert code == 9


def test_control_z_stops_the_command_and_fg_lets_it_go_on(own):
    """At a shell with job control, with a command that has no terminal of its own."""
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv("/bin/bash", ["bash", "--norc", "-i"])
    loop = "for i in $(seq 100); do echo tick$i; sleep 0.05; done; exit 5"
    try:
        os.write(master, shlex.join([*CULVERT, *arguments(own, "sh", "-c", loop, options=("-T",))]).encode() + b"\n")
        expect(master, b"tick3\r")
        os.write(master, b"\x1a")
        expect(master, b"Stopped")
        ticks = run(own, "sh", "-c", "ps -eo stat=,args= | grep 'seq 1[0]0'").stdout.split()
        assert ticks[0].startswith("T")
        os.write(master, b"fg\n")
        expect(master, b"tick100\r")
        os.write(master, b"echo status=$?\n")
        expect(master, b"status=5")
        os.write(master, b"exit\n")
        drain(master)
    finally:
        assert end(pid, master) == 0


def test_a_signal_to_the_whole_process_group_reaches_the_command_once(own):
    """As a terminal's Ctrl-C does: the helpers of `lab exec` are in the same group as it."""
    count = "import os, signal\nsignal.signal(2, lambda *_: os.write(1, b'got\\n'))\nprint('up', flush=True)\n"
    script = count + "while True: signal.pause()"
    with group(own, "python3", "-c", script) as process:
        assert process.stdout.readline() == b"up\n"
        for _ in range(20):  # each once the one before has come: signals that wait together are one
            os.killpg(process.pid, signal.SIGINT)
            assert process.stdout.readline() == b"got\n"
        time.sleep(0.02)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.communicate(timeout=5)[0] == b"", "a signal has come twice"


def test_stopping_and_going_on_a_hundred_times_loses_nothing(own):
    with group(own, "cat") as process:
        for index in range(100):
            os.killpg(process.pid, signal.SIGTSTP)
            eventually(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
            os.killpg(process.pid, signal.SIGCONT)
            process.stdin.write(b"%d\n" % index)
            assert select.select([process.stdout], [], [], 5)[0], f"nothing came after stop {index}"
            assert process.stdout.read(64) == b"%d\n" % index
        process.stdin.close()
        assert process.wait(5) == 0


def test_asked_terminal_is_given_to_a_pipe_too(own):
    done = run(own, "sh", "-c", "test -t 0 && test -t 1 && cat", options=("-t",), input="line\n")
    assert done.returncode == 0
    assert "line" in done.stdout


def test_many_at_once(own):
    processes = [
        start(*arguments(own, "sh", "-c", f"echo {i}; exit {i}"), stdout=subprocess.PIPE, text=True) for i in range(50)
    ]
    results = [(process.communicate(timeout=60)[0], process.returncode) for process in processes]
    assert results == [(f"{i}\n", i) for i in range(50)]


def resize(fd, rows, columns):
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def expect(fd, wanted):
    seen = b""
    while wanted not in seen:
        seen += os.read(fd, 4096)
    return seen


def end(pid, master):
    """Close the terminal, which ends what is still at it, and say how it ended; killed where that is not enough."""
    os.close(master)
    deadline = time.monotonic() + 5
    while (found := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return os.waitstatus_to_exitcode(found[1])


def drain(fd):
    try:
        while os.read(fd, 4096):
            pass
    except OSError:
        return

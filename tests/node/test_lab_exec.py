"""`lab exec` against one idle pod: what goes in, what comes out, and what is left when somebody dies."""

import fcntl
import hashlib
import json
import os
import pty
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest

from tests.node.lab_stage import CULVERT, ROOT, culvert, lab, start

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


def wait_for(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "did not come about within 5 s"
        time.sleep(0.02)


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


def test_output_and_error_stay_apart(own):
    done = run(own, "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_100_mb_pass_through_unchanged(own):
    data = os.urandom(1 << 20) * 100
    done = run(own, "cat", input=data, text=False)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


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
    other = run(own, "sh", "-c", 'echo "$COLOUR $PWD $(id -u)"', options=("-c", "two"))
    assert other.stdout == " / 65534\n"


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
    wait_for(lambda: len(children_of(marker)) == 2)
    process.kill()
    process.communicate()
    wait_for(lambda: not children_of(marker))


def test_background_process_outlives_a_command_that_ends_by_itself(own):
    marker = f"sleep\x00{2000 + os.getpid() % 1000}"
    assert run(own, "sh", "-c", f"{marker.replace(chr(0), ' ')} >/dev/null 2>&1 </dev/null &").returncode == 0
    time.sleep(0.1)
    assert len(children_of(marker.encode())) == 1
    run(own, "pkill", "-f", marker.replace("\0", " "))
    wait_for(lambda: not children_of(marker.encode()))


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
        _, status = os.waitpid(pid, 0)
        os.close(master)
    assert os.waitstatus_to_exitcode(status) == 9


def test_asked_terminal_is_given_to_a_pipe_too(own):
    done = run(own, "sh", "-c", "test -t 0 && test -t 1 && cat", options=("-t",), input="line\n")
    assert done.returncode == 0
    assert "line" in done.stdout


def test_many_at_once(own):
    processes = [
        start(*arguments(own, "sh", "-c", f"echo {i}; exit {i}"), stdout=subprocess.PIPE, text=True) for i in range(20)
    ]
    results = [(process.communicate(timeout=30)[0], process.returncode) for process in processes]
    assert results == [(f"{i}\n", i) for i in range(20)]


def resize(fd, rows, columns):
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def expect(fd, wanted):
    seen = b""
    while wanted not in seen:
        seen += os.read(fd, 4096)
    return seen


def drain(fd):
    try:
        while os.read(fd, 4096):
            pass
    except OSError:
        return

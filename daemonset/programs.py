"""The node's eBPF programs, brought into place by a process of their own.

The compiler behind them takes more memory than everything else of the agent together, so it runs in a child that ends
when programs, maps and links are pinned (`python -m bpf.loader`). Nothing here imports it.
"""

import asyncio
import contextlib
import os
import signal
import sys

# What of the child's output a message quotes: the verifier's last words, not its book.
_QUOTED_LINES = 8
# A loader that is told to end has this long to remove what it has pinned.
_UNDO_S = 3.0


class LoadFailed(Exception):
    """The loader did not do what was asked; the text is its reason."""


async def run_loader(verb: str, key: str, timeout_s: float) -> str:
    """Run one verb of the loader for a node's set and return what it printed; raises LoadFailed."""
    command = [sys.executable, "-m", "bpf.loader", verb, "--node", key]
    child = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout_s):
            output, errors = await child.communicate()
    except TimeoutError:
        raise LoadFailed(f"loader {verb}: not done after {timeout_s:g} s") from None
    finally:
        if child.returncode is None:
            await _end(child)
    if child.returncode != 0:
        lines = (errors or output).decode(errors="replace").strip().splitlines()
        quoted = "\n".join(lines[-_QUOTED_LINES:]) or "without a word"
        raise LoadFailed(f"loader {verb} ended with status {child.returncode}: {quoted}")
    return output.decode(errors="replace")


async def _end(child: asyncio.subprocess.Process) -> None:
    """Let the loader undo what is half done, then make sure that it and its children are gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_UNDO_S):
            await child.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    await child.wait()

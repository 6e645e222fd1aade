"""The node's eBPF programs, brought into place by a process of their own.

The compiler behind them takes more memory than everything else of the agent together, so it runs in a child that ends
when programs, maps and links are pinned (`python -m bpf.loader`). Nothing here imports it.
"""

import asyncio
import logging
import os
import signal
import sys

log = logging.getLogger(__name__)

# What of the child's output a message quotes: the verifier's last words, not its book.
_QUOTED_LINES = 8


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
            os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
    if child.returncode != 0:
        lines = (errors or output).decode(errors="replace").strip().splitlines()
        quoted = "\n".join(lines[-_QUOTED_LINES:]) or "without a word"
        raise LoadFailed(f"loader {verb} ended with status {child.returncode}: {quoted}")
    return output.decode(errors="replace")

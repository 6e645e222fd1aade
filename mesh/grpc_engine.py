"""Which of gRPC's two ways to poll sockets this process uses. See docs/adr/0015."""

import os
from collections.abc import MutableMapping

# gRPC's own variable. A minus switches an experiment off that is on by default; what a user has set stands.
VARIABLE = "GRPC_EXPERIMENTS"
POLLED_BY_THE_CALLER = "-event_engine_client,-event_engine_listener"


def choose(env: MutableMapping[str, str] = os.environ) -> None:
    """Have the thread that waits for gRPC poll its sockets too. To be called before the first channel or server."""
    env.setdefault(VARIABLE, POLLED_BY_THE_CALLER)

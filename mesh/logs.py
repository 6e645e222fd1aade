"""The log of a process: one line per entry on standard error, for people or as JSON.

Levels can be changed while it runs (`/logging`); nothing that is secret is ever passed to a logger.
"""

import json
import logging
import sys
from datetime import UTC, datetime

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)}\t{record.levelname.lower()}\t{record.name}\t{record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "level": record.levelname.lower(),
            "time": _time(record),
            "scope": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def start(level: str, *, as_json: bool) -> None:
    """Write the log of this process from now on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if as_json else _Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(level)


def set_level(level: str, scope: str = "") -> None:
    """Change the level of everything, or of one scope; raises ValueError for a word that is none."""
    if level not in LEVELS:
        raise ValueError(f"{level!r} is not a level; levels are {', '.join(LEVELS)}")
    logging.getLogger(scope or None).setLevel(level.upper())


def levels() -> dict[str, str]:
    """The level of everything and of each scope that has its own."""
    found = {"": logging.getLevelName(logging.getLogger().level).lower()}
    for name, logger in logging.Logger.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and logger.level != logging.NOTSET:
            found[name] = logging.getLevelName(logger.level).lower()
    return found

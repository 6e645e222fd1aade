"""`python -m cli.install.manifests [--check]`: what is generated from the chart.

That is the plain manifests of daemonset/manifests, and the chart's values.schema.json: by it Helm refuses settings that
it would ignore otherwise, as `culvert install` does.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from cli.install.chart import Chart
from cli.install.values import is_open

PLATFORMS = ("generic", "kind", "k3s", "gke", "eks", "openshift")

_HEAD = """\
# Culvert {version} for platform {platform}. Generated from daemonset/chart by `make manifests`; do not edit.
#
#   culvert install --platform {platform} --dry-run
"""


class _Plain(yaml.SafeDumper):
    """Writes equal parts out in full instead of as an alias, and texts of several lines as they are."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def settings(platform: str) -> list[str]:
    """What `culvert install` and plain manifests set beside a user's settings."""
    return [f"platform={platform}", "namespace.create=true", "managedBy=culvert"]


def text(documents: list[dict[str, Any]]) -> str:
    """Objects as a file for `kubectl apply`."""
    return "".join(f"---\n{yaml.dump(one, Dumper=_Plain, sort_keys=False, width=110)}" for one in documents)


def manifest(chart: Chart, platform: str) -> str:
    """Everything that an installation consists of, with the default settings of a platform."""
    values = chart.values((), settings(platform))
    head = _HEAD.format(version=chart.version, platform=platform)
    return head + text([*chart.definitions(), *chart.objects(values)])


def schema(chart: Chart) -> str:
    """Which settings there are, and of what type: what the defaults say."""
    found = _schema("", chart.defaults)
    found["properties"]["global"] = {"type": "object"}  # Helm gives it to every chart that another one asks for
    return json.dumps({"$schema": "http://json-schema.org/draft-07/schema#", **found}, indent=2) + "\n"


def _schema(key: str, default: Any) -> dict[str, Any]:
    if not isinstance(default, dict):
        return {"type": _TYPES[type(default)]}
    if is_open(key, default):
        return {"type": "object"}
    parts = {name: _schema(name, value) for name, value in default.items()}
    return {"type": "object", "properties": parts, "additionalProperties": False}


# A text may be written as a number: a version, an account.
_TYPES: dict[type, str | list[str]] = {str: ["string", "number"], bool: "boolean", int: "integer", list: "array"}


def _files(chart: Chart) -> dict[Path, str]:
    folder = chart.folder.parent / "manifests"
    found = {folder / f"{platform}.yaml": manifest(chart, platform) for platform in PLATFORMS}
    return {**found, chart.folder / "values.schema.json": schema(chart)}


def main(argv: list[str]) -> int:
    """Write the files, or with --check say which are not as they would be written."""
    stale = []
    for path, wanted in _files(Chart()).items():
        if not path.exists() or path.read_text() != wanted:
            stale.append(str(path))
            if "--check" not in argv:
                path.write_text(wanted)
    if stale and "--check" in argv:
        print(f"not as the chart renders them: {', '.join(stale)}: run `make manifests`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

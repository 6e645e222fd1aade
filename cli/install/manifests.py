"""`python -m cli.install.manifests [--check]`: the plain manifests of daemonset/manifests, generated from the chart."""

import sys
from typing import Any

import yaml

from cli.install.chart import Chart

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


def main(argv: list[str]) -> int:
    """Write the files, or with --check say which are not as they would be written."""
    chart = Chart()
    folder = chart.folder.parent / "manifests"
    folder.mkdir(exist_ok=True)
    stale = []
    for platform in PLATFORMS:
        path, wanted = folder / f"{platform}.yaml", manifest(chart, platform)
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

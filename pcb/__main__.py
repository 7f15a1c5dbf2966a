"""The command `pcb`, also as `python -m pcb`: runs pcb/cli where this Python can."""

from __future__ import annotations

import sys

OLDEST = (3, 11)  # for the pipeline; the plug-in runs on any Python that the package installs on


def main() -> int:
    """Run `pcb` with the process's arguments and return the exit status."""
    if sys.version_info < OLDEST:
        found, needed = (".".join(map(str, v[:2])) for v in (sys.version_info, OLDEST))
        print(
            f"error: the command `pcb` needs Python {needed} or newer, this is {found}\n"
            f"fix: install the package with Python {needed} or newer; only the plug-in, `import "
            "pcb.losses` or `import pcb.mmdet`, works with this one",
            file=sys.stderr,
        )
        return 2
    from pcb.cli import main as run

    return run()


if __name__ == "__main__":
    raise SystemExit(main())

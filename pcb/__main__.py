"""`python -m pcb` is the command `pcb`."""

from pcb.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

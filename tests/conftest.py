"""What all tests share."""

import signal

from pcb.cluster.instructions import use_same_instructions


def pytest_configure():
    """Compute as the command does, in the tests' processes too, and let signals through.

    Ctrl-C and a closed terminal end the processes that tests start, whoever started us: in the
    background of a shell, and under nohup, they are ignored, which children inherit.
    """
    use_same_instructions()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items):
    """Start the longest first: with two workers the rest then runs beside the smoke run."""
    items.sort(key=lambda item: "slow" not in item.keywords)

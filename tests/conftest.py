"""What all tests share."""

import signal


def pytest_configure():
    """Let Ctrl-C and a closed terminal end the processes that tests start, whoever started us.

    In the background of a shell, and under nohup, they are ignored, which children inherit.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items):
    """Start the longest first: with two workers the rest then runs beside the smoke run."""
    items.sort(key=lambda item: "slow" not in item.keywords)

"""Signal handlers that may wait for a lock."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread


def in_thread(handler: Callable[..., object]) -> Callable[..., None]:
    """A signal handler that runs `handler` in a thread of its own.

    A handler interrupts the main thread wherever it is. Snakemake's handler of SIGTERM takes the
    lock of its scheduler, for which it would wait for ever where the main thread holds that lock.
    """

    def handle(*arguments) -> None:
        Thread(target=handler, args=arguments).start()

    return handle

"""A signal's handler that raises while the server commits."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from tests.faults.proxy import Proxy

DEADLINE_S = 15.0


@contextlib.contextmanager
def interrupting_commit(proxy: Proxy, interrupt: BaseException) -> Iterator[None]:
    """Raise ``interrupt`` in the main thread when the server has replied to the next COMMIT, which is not heard yet."""

    def raise_interrupt(number: int, frame: FrameType | None) -> None:
        raise interrupt

    main = threading.main_thread().ident
    assert main is not None

    def interrupt_commit() -> None:
        has_come = proxy.wait_for_reply()
        # Released beforehand: a thread that is traced for coverage spins from the signal on until the main thread
        # runs again (CPython 3.11).
        proxy.release(after_s=0.2)
        if has_come:
            signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, raise_interrupt)
    thread = threading.Thread(target=interrupt_commit)
    proxy.hold()
    thread.start()
    try:
        yield
    finally:
        thread.join(DEADLINE_S)
        signal.signal(signal.SIGUSR1, before)

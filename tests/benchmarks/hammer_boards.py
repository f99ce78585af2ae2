"""Read boards a million times while their workers write: ``python -m tests.benchmarks.hammer_boards --reads 1000000``.

Two workers with four threads each make units as fast as they can. Some readers look at each of their boards again and
again, and compare what they read with what they know of the units and with what they have read before.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from flask_uow import stats
from tests import boards
from tests.concurrency.busy_board import Witness
from tests.concurrency.test_boards import busy

WORKERS = 2
READERS = 2


def read(folder: Path, reads: int) -> None:
    """Read so many boards; one that is not whole ends the process with an error."""
    app, _ = boards.make_app(folder)
    witnesses: dict[int, Witness] = {}
    boards.read_until(app, lambda seen: len(seen.workers) == WORKERS)
    while sum(witness.reads for witness in witnesses.values()) < reads:
        seen = stats.read_boards(app)
        assert not seen.notes, seen.notes
        assert len(seen.workers) == WORKERS
        for worker in seen.workers:
            witnesses.setdefault(worker.pid, Witness()).see(worker)


def hammer(folder: Path, reads: int) -> str:
    """Let readers read so many boards in all, and say what came of it.

    :param folder: an empty one.
    """
    with ExitStack() as stack:
        for number in range(WORKERS):
            (folder / str(number)).mkdir()
            stack.enter_context(busy(folder / "boards", database=folder / str(number) / "busy.sqlite"))
        before = time.monotonic()
        context = multiprocessing.get_context("spawn")
        readers = [context.Process(target=read, args=(folder / "boards", reads // READERS)) for _ in range(READERS)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        took_s = time.monotonic() - before
        assert [reader.exitcode for reader in readers] == [0] * READERS
        units = stats.read_boards(boards.make_app(folder / "boards")[0]).totals.units.begun
    return f"{reads} boards read in {took_s:.0f} s while {units} units were made: none torn, negative or falling."


def main() -> None:
    """Hammer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reads", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(hammer(Path(folder), options.reads) + "\n")


if __name__ == "__main__":
    main()

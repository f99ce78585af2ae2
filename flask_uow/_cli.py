"""``flask db-session-stats``: take a snapshot, print it, and end with a status that says what it is worth.

Everything that is known comes from :mod:`flask_uow.stats`; how it looks is left to the tables, and how it changes to
the watch. Here are the options and the exit status.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import sys
import typing as t
from collections.abc import Callable, Iterator, Sequence

import click
from flask.cli import with_appcontext

from . import stats
from ._hiding import harmless
from ._tables import DEFAULT_LIMIT, SORTS, Listing, make_console, picture, print_parts, text_of
from ._watch import DEFAULT_SECONDS, MAX_SECONDS, MIN_SECONDS, History, Show, repeat, watched_screen
from .exceptions import UnitOfWorkError

if t.TYPE_CHECKING:
    from rich.console import Console, RenderableType

_FAILED = 1
_UNREADABLE = 2
# A state of a session and one of a live unit may have the same name.
_STATES: t.Final = tuple(dict.fromkeys((*stats.GROUPS, *stats.STATES)))


def _read_with(read: Callable[[str], object]) -> Callable[[click.Context, click.Parameter, t.Any], object]:
    """Make the callback of an option that may be repeated or not, out of what reads one value or raises ValueError."""

    def callback(context: click.Context, option: click.Parameter, typed: t.Any) -> object:
        if typed is None:
            return None
        try:
            return read(typed) if isinstance(typed, str) else tuple(map(read, typed))
        except ValueError as error:
            raise click.BadParameter(str(error), context, option) from None

    return callback


def _read_state(typed: str) -> str:
    states = {state.lower(): state for state in _STATES}
    try:
        return states[typed.lower().replace("-", " ")]
    except KeyError:
        raise ValueError(f"{typed!r} is no state. Choose from: {', '.join(_STATES)}.") from None


def _read_interval(typed: str) -> float:
    seconds = stats.parse_seconds(typed)
    if seconds < MIN_SECONDS:
        raise ValueError(f"{typed!r} is too often. Choose {MIN_SECONDS:g} seconds or more.")
    if seconds > MAX_SECONDS:
        raise ValueError(f"{typed!r} is too seldom. Choose {MAX_SECONDS} seconds or less.")
    return seconds


@dataclasses.dataclass(frozen=True)
class _Request:
    """What was typed."""

    as_json: bool
    wanted: stats.Filter
    conditions: tuple[stats.Condition, ...]
    listing: Listing


@click.command("db-session-stats")
@click.option(
    "--watch",
    callback=_read_with(_read_interval),
    is_flag=False,
    flag_value=DEFAULT_SECONDS,
    metavar="[SECONDS]",
    help=f"Go on until Ctrl-C: a new picture every {DEFAULT_SECONDS} seconds, or as many as are given. On a terminal "
    "it takes the place of the one before, and shows how rates and connections rise and fall.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document; with --watch, one in each line.")
@click.option("--explain", "explains", is_flag=True, help="Say of each trouble what it means and what to do.")
@click.option(
    "--sort",
    type=click.Choice(SORTS),
    default=SORTS[0],
    help=f"Order labels, and live units by what applies to them. Default: {SORTS[0]}.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=DEFAULT_LIMIT,
    metavar="ROWS",
    help=f"The most rows of a table; 0 for all. Default: {DEFAULT_LIMIT}.",
)
@click.option(
    "--label",
    default="",
    metavar="TEXT",
    help="List only what has this in its label; with * or ?, what matches as a whole. Case does not matter.",
)
@click.option(
    "--worker", "workers", type=int, multiple=True, metavar="PID", help="List only this worker; may be repeated."
)
@click.option(
    "--min-age",
    callback=_read_with(stats.parse_seconds),
    default="0",
    metavar="SECONDS",
    help="List only sessions that are in their transaction or state for at least so long, and such live units.",
)
@click.option(
    "--state",
    "states",
    callback=_read_with(_read_state),
    metavar="STATE",
    multiple=True,
    help=f"List only sessions and live units in this state; may be repeated. One of: {', '.join(_STATES)}.",
)
@click.option(
    "--fail-on",
    "conditions",
    callback=_read_with(stats.Condition.parse),
    multiple=True,
    metavar="CONDITION",
    help="Exit with status 1 if this holds, of anything, listed or not; with --watch, if it ever did. May be "
    f"repeated. One of: {', '.join(stats.condition_forms())}.",
)
@with_appcontext
def db_session_stats(
    *,
    watch: float | None,
    as_json: bool,
    explains: bool,
    sort: str,
    limit: int,
    label: str,
    workers: tuple[int, ...],
    min_age: float,
    states: tuple[str, ...],
    conditions: tuple[stats.Condition, ...],
) -> None:
    """Show what every worker of this app does in its databases: trouble, live units, sessions, connections.

    Exit status: 0; 1 if a condition of --fail-on holds; 2 if a database cannot be read or the output cannot be written,
    or on wrong usage.

    The keys of the JSON document and what each trouble means: docs/db-session-stats.rst, beside the README.
    """
    if explains and as_json:
        raise click.UsageError("--explain is for people, --json for programs: leave one of them away.")
    wanted = stats.Filter(min_age, states, label, workers)
    request = _Request(as_json, wanted, conditions, Listing(sort, limit, explains, workers, _choice(wanted)))
    status = _show_once(request) if watch is None else _watch(request, watch)
    click.get_current_context().exit(status)


def _choice(wanted: stats.Filter) -> str:
    """Say what was chosen to be listed."""
    parts: list[t.Any] = [
        wanted.label and f"label {wanted.label!r}",
        wanted.workers and f"worker {', '.join(map(str, wanted.workers))}",
        wanted.states and f"state {', '.join(wanted.states)}",
        wanted.min_age_seconds and f"{wanted.min_age_seconds:g} s and older",
    ]
    return "; ".join(part for part in parts if part)


# ---- once


def _show_once(request: _Request) -> int:
    snapshot = _take()
    shown = snapshot.only(request.wanted)
    if request.as_json:
        _echo_json(shown, indent=2)
    elif not snapshot.databases or len(snapshot.errors) < len(snapshot.databases) or snapshot.workers or snapshot.ended:
        _echo(lambda console: print_parts(console, picture(shown, request.listing)))
    return _judge(snapshot, request)


def _take() -> stats.Snapshot:
    try:
        return stats.snapshot()
    except UnitOfWorkError as error:
        click.echo("\n".join(map(harmless, str(error).split("\n"))), err=True)
        raise click.exceptions.Exit(_UNREADABLE) from error


def _echo(draw_on: Callable[[Console], None]) -> None:
    """Draw for the terminal that the output goes to; in plain text where it goes elsewhere or NO_COLOR asks for it."""
    console = make_console()
    with _writing():
        with console.capture() as capture:
            draw_on(console)
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # whoever wants the status alone may have closed it
        # rich has decided on colours; click would take out those that FORCE_COLOR asks for.
        click.echo(capture.get().encode(encoding, "replace").decode(encoding), nl=False, color=True)


def _echo_json(shown: stats.Snapshot, indent: int | None = None) -> None:
    with _writing():
        click.echo(json.dumps(shown.as_dict(), indent=indent))


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """Write to the standard output in a ``with`` block.

    :raises click.exceptions.Exit: with a status that no condition has, if that cannot be done.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise  # click ends in silence, as whoever reads has had enough
        click.echo(f"The output cannot be written: {error.strerror or error}.", err=True)
        with contextlib.suppress(OSError, ValueError):  # or Python tries again at its end, with a status of its own
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(_UNREADABLE) from error


def _judge(snapshot: stats.Snapshot, request: _Request) -> int:
    """Say on standard error what is wrong, and give the exit status."""
    failures = _failures(snapshot, request)
    for line in (*snapshot.errors, *failures):
        click.echo(harmless(line), err=True)
    return _status(snapshot, failures)


def _failures(snapshot: stats.Snapshot, request: _Request) -> list[str]:
    return [failure for condition in request.conditions for failure in condition.failures(snapshot)]


def _status(snapshot: stats.Snapshot, failures: Sequence[str]) -> int:
    return _UNREADABLE if snapshot.errors else _FAILED if failures else 0


# ---- again and again


def _watch(request: _Request, seconds: float) -> int:
    """Show one snapshot after the other; the status is the worst that there was."""
    screen = None if request.as_json else watched_screen()
    history, statuses = History(), {0}
    if screen is None:
        repeat(lambda: statuses.add(_print_next(request, history)), seconds)
        return max(statuses)
    with screen as show:
        repeat(lambda: statuses.add(_show_next(request, history, show)), seconds)
    return max(statuses)


def _print_next(request: _Request, history: History) -> int:
    snapshot = _take()
    history.add(snapshot)
    if request.as_json:
        _echo_json(snapshot.only(request.wanted))
    else:
        _echo(lambda console: print_parts(console, (*_frame(snapshot, (), history, request, console), "")))
    return _judge(snapshot, request)


def _show_next(request: _Request, history: History, show: Show) -> int:
    snapshot = _take()
    history.add(snapshot)
    failures = _failures(snapshot, request)
    show(lambda console: _frame(snapshot, failures, history, request, console))
    return _status(snapshot, failures)


def _frame(
    snapshot: stats.Snapshot, failures: Sequence[str], history: History, request: _Request, console: Console
) -> Iterator[RenderableType]:
    yield text_of(f"{snapshot.taken_at:%Y-%m-%d %H:%M:%S %Z}", "dim")
    yield from (text_of(line, "cyan") for line in history.lines(console.width, console.encoding))
    yield from (text_of(f"fails: {failure}", "bold red") for failure in failures)
    yield ""
    yield from picture(snapshot.only(request.wanted), request.listing)

"""The tables: what stands where, what is cut and what is not, and that nothing gets through to the terminal."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO, StringIO, TextIOWrapper
from typing import Any

import pytest
from rich.console import Console

from flask_uow import stats
from flask_uow._tables import Listing, draw
from flask_uow._tables._cells import shortened
from flask_uow.stats import State, duration
from tests import snapshots


def session(**changes: Any) -> stats.ServerSession:
    """A session that is idle in a transaction, unless changed; its numbers are as long as they get."""
    idle = stats.ServerSession(
        pid=4194304,
        application_name="flask_uow:bank:4194303",
        worker_pid=4194303,
        user="bank",
        database="bank",
        client_address=None,
        state="idle in transaction",
        transaction_age_seconds=95000.0,
        state_age_seconds=86399.0,
        wait_event=None,
        query="SELECT 1",
        blocked_by=(),
    )
    return replace(idle, **changes)


def snapshot_of(*sessions: stats.ServerSession, **changes: Any) -> stats.Snapshot:
    """A snapshot of one database with these sessions."""
    database = stats.DatabaseSnapshot(
        binds=("default",),
        dialect="postgresql",
        driver="psycopg2",
        url="postgresql://bank:***@db.example/bank",
        pools=(stats.PoolSnapshot("default", "QueuePool", 1, 5, 3, 0, 0, -1, 5.0),),
        server_version="15.18 (Debian 15.18-0+deb12u1)",
        found_by="application_name flask_uow:bank:*",
        sessions=sessions,
        summary=stats.Summary.of(sessions),
    )
    return stats.Snapshot("bank", datetime.now(UTC), (replace(database, **changes),))


def drawn(snapshot: stats.Snapshot, width: int = 80, **listing: Any) -> str:
    """What is printed at a width."""
    file = StringIO()
    console = Console(file=file, width=width, highlight=False, markup=False, color_system=None)
    draw(snapshot, console, Listing(**listing))
    return file.getvalue()


def words(text: str) -> str:
    """A text without its folds."""
    return " ".join(text.split())


def test_trouble_comes_first() -> None:
    """Groups stand in the order of trouble, and within a group the longest comes first."""
    text = drawn(
        snapshot_of(
            session(state="hidden", query=None, state_age_seconds=None, transaction_age_seconds=None, user="clerk"),
            session(state="idle", pid=1, state_age_seconds=7.0),
            session(state="idle", pid=2, state_age_seconds=70.0),
            session(state="active"),
            session(state="active", blocked_by=(4711, 0)),
            session(),
            session(state="idle in transaction (aborted)", transaction_age_seconds=None),
        )
    )

    groups = ("idle in transaction (aborted)", "idle in transaction", "blocked", "active", "hidden")
    places = [text.index(f"\n{group} (1)\n") for group in groups]
    assert places == sorted(places)
    assert text.index("       2 ") < text.index("       1 ")
    assert "waits for 4711, a prepared transaction" in words(text)
    assert "role clerk" in text


@pytest.mark.parametrize("width", [80, 60])
def test_nothing_that_counts_is_cut(width: int) -> None:
    """Pid, worker, state and ages are whole at 80 columns and below; the statement takes what is left."""
    text = drawn(snapshot_of(session(query="SELECT " + "x, " * 100), session(blocked_by=(4194302,))), width)

    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    (idle,) = [line for line in lines if "SELECT x" in line]
    assert idle.split()[:6] == ["4194304", "4194303", "23", "h", "59", "min"]
    assert "1 d 2 h" in idle
    assert idle.rstrip().endswith("…")
    assert any("4194302" in line for line in lines)


def test_long_summary_is_whole() -> None:
    """A summary with every state and large numbers is wrapped at words, not cut."""
    states = [state for state in stats.GROUPS for _ in range(120)]
    text = drawn(snapshot_of(*(session(state=state) for state in states)))

    summary = " ".join(text.split())
    assert "1,080 sessions: 120 idle in transaction (aborted) for 23 h 59 min, 120 idle in transaction for" in summary
    assert max(map(len, text.splitlines())) <= 80


HOSTILE = "[bold red]x[/] \x1b[31m\x1b]0;owned\x07\r\n\u202eevil\u2066\x9b2J :smile: [link=http://x]y[/link]"


def test_hostile_names_and_queries() -> None:
    """Neither rich's markup nor a terminal's control sequences nor reversed text gets through."""
    hostile = session(application_name=HOSTILE, query=HOSTILE, user=HOSTILE, state="active", blocked_by=(1,))
    blocker = session(application_name=HOSTILE, user=HOSTILE, state=HOSTILE, pid=1, blocked_by=(0,))
    hidden = session(user=HOSTILE, query=None, state="hidden")
    snapshot = snapshot_of(
        hostile, hidden, session(state=HOSTILE), blockers=(blocker,), url=HOSTILE, binds=(HOSTILE,), notes=(HOSTILE,)
    )

    text = drawn(snapshot, 200)

    assert not set(text) & set("\x1b\x07\r\x9b\u202e\u2066")
    assert "[bold red]x[/] ?[31m?]0;owned???" in text
    assert ":smile: [link=http://x]y[/link]" in text


def test_blockers_outside_the_app() -> None:
    """Who is not of the app and in its way is named with state and age."""
    blocker = session(pid=99, application_name="", user="root", state="idle in transaction", blocked_by=(98,))

    text = drawn(snapshot_of(session(blocked_by=(99,)), blockers=(blocker,)))

    assert "not of this app, but in its way" in text
    assert "idle in transaction, waits for 98:" in text
    assert "no name, role root" in " ".join(text.split())


def test_pools_and_notes() -> None:
    """The pool that is waited for comes first; one without counters has dashes, one without a limit says so."""
    pools = (
        stats.PoolSnapshot("default", "QueuePool", 1, 5, 3, 0, 0, -1, 5.0),
        stats.PoolSnapshot("reader", "QueuePool", 1, 5, 15, 0, 10, 10, 5.0),
        stats.PoolSnapshot("archive", "NullPool", 1),
        stats.PoolSnapshot("waited", "QueuePool", 1, 5, 2, 0, 0, 10, 5.0, waiting=1),
    )

    lines = drawn(snapshot_of(pools=pools, notes=("A NullPool keeps no counters.",))).splitlines()

    assert lines[-1] == "Note: A NullPool keeps no counters."
    assert [line.split()[:5] for line in lines[-6:-2]] == [
        ["1", "5", "2", "0", "15"],
        ["1", "5", "15", "10", "15"],
        ["1", "5", "3", "0", "none"],
        ["1", *["-"] * 4],
    ]
    assert "0 sessions" in lines


def test_writer_of_a_sqlite_file_and_its_log() -> None:
    """The process that writes and the size of the log are named; a mode that cannot be read is said to be unknown."""
    sqlite = stats.SQLiteDatabase("/bank.db", 1234567, 4096, None, 4711)

    text = drawn(snapshot_of(server_version=None, sqlite=sqlite), 100)

    assert "SQLite file of 1,234,567 bytes, write-ahead log 4,096 bytes, journal mode not known" in text
    assert "process 4711 holds the write lock" in text


def test_several_databases_are_set_apart() -> None:
    """Between two databases there is an empty line."""
    snapshot = snapshot_of()
    (database,) = snapshot.databases

    text = drawn(replace(snapshot, databases=(database, replace(database, binds=("archive",)))))

    assert "\n\narchive: postgresql://" in text


# ---- workers


def test_sections_stand_in_the_order_of_urgency() -> None:
    """Trouble, live units, sessions, pools, labels, rules, notes; and what there is nothing of is left out."""
    text = drawn(replace(snapshots.bad_night(), notes=("The board of worker 9 is of another version.",)))

    heads = ["bank on teller-1", "trouble (", "live units (", "default: ", "idle in transaction (3)", "blocked (1)"]
    heads += ["pools (2)", "labels (3)", "rules broken", "Note: The board of worker 9"]
    places = [f"\n{text}".index(f"\n{head}") for head in heads]
    assert places == sorted(places)
    quiet = drawn(snapshots.snapshot(snapshots.worker(counts=stats.Counts(), pools=())))
    assert quiet.splitlines() == [
        "bank on teller-1: 1 worker, up 3 h",
        "units: 0 begun, 0 committed, 0 rolled back, 0 failed, 0 retried",
        "sessions: 0 opened, 0 closed, 0 leaked; 0 statements",
        "No database of app 'bank' is known: its session is bound to none.",
    ]


@pytest.mark.parametrize("width", [80, 100, 140])
def test_every_live_unit_is_told_with_all_that_is_known(width: int) -> None:
    """Age, worker, statements, backend, view, state with its age, thread and line, whole at every width."""
    lines = drawn(snapshots.bad_night(), width).splitlines()

    start = lines.index(next(line for line in lines if line.startswith("  34.3 s")))
    unit = words("\n".join(lines[start : start + 3]))
    assert max(map(len, lines)) <= width
    assert unit.startswith(
        "34.3 s 6 POST /withdrawals 4711 5101 idle in transaction for 34.2 s, ThreadPoolExecutor-0_0"
    )
    assert "bank/counter.py:58 in withdraw" in unit


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "running SQL for 0.0 s, ThreadPoolExecutor-0_0"),
        ({"attempt": 3}, "running SQL for 0.0 s, attempt 3, ThreadPoolExecutor-0_0"),
        ({"server_state": "active"}, "running SQL for 0.0 s, ThreadPoolExecutor-0_0"),
        (
            {"state": State.IDLE, "server_state": "idle in transaction (aborted)", "thread": "Thread-1"},
            "idle in transaction (aborted) for 0.0 s, Thread-1",
        ),
        ({"state": State.HELD, "server_state": "idle"}, "held, idle for 0.0 s, ThreadPoolExecutor-0_0"),
        ({"state": State.HELD}, "held for 0.0 s, ThreadPoolExecutor-0_0"),
        ({"waits_for": ("GET /a", "99")}, "running SQL for 0.0 s, waits for GET /a, 99"),
    ],
)
def test_state_of_a_live_unit(changes: dict[str, Any], line: str) -> None:
    """In the worker's words, with its server's where the worker cannot know."""
    worker = snapshots.worker(4711, snapshots.unit(**changes), counts=stats.Counts(), pools=())

    assert line in words(drawn(snapshots.snapshot(worker)))


def test_what_a_server_says_of_the_outer_unit() -> None:
    """It is said of what is at work, whichever of the units has the connection."""
    outer = snapshots.unit(waits_for=("GET /a",), server_state="idle in transaction (aborted)")
    inner = snapshots.unit("record", depth=2, backend_pids=(), state=State.IDLE)

    text = words(drawn(snapshots.snapshot(snapshots.worker(4711, outer, inner))))

    assert "idle in transaction (aborted) for 0.0 s, waits for GET /a" in text


def test_what_is_no_unit_is_called_so() -> None:
    """A connection that was taken by hand, or by a session outside of units."""
    live = [snapshots.unit(kind=kind, depth=0, thread_id=at) for at, kind in enumerate(("session", "connection"))]
    text = drawn(snapshots.snapshot(snapshots.worker(4711, *live)))

    assert "POST /transfers (session outside of units)" in text
    assert "POST /transfers (connection taken by hand)" in text


def test_counts_that_are_odd() -> None:
    """A rule of another version, a label that no unit has ended of, a pool without a limit, and one note twice."""
    labels = (snapshots.label_counts("begun only", count=0, errors=0, total_seconds=0.0, statements=0),)
    counts = stats.Counts(rules={"UOW999": 2, "UOW101": 0}, labels=labels)
    pools = (snapshots.pool(max_overflow=-1), snapshots.pool(bind="archive"))
    worker = snapshots.worker(counts=counts, pools=pools)
    text = drawn(replace(snapshots.snapshot(worker), notes=("Once.", "Once.")))

    assert "UOW999  a rule of another version" in text
    assert "UOW101" not in text
    assert re.search(r"\n +0 +0 +- +820 ms +-  begun only", text)
    assert "pools (2): 8 connections in use, 0 waited for" in text
    assert text.count("Note: Once.") == 1


def test_inner_units_stand_under_their_outermost_one() -> None:
    """They are indented, and the innermost alone says what is at work and whom it waits for."""
    lines = [line.rstrip() for line in drawn(snapshots.bad_night()).splitlines()]

    outer = lines.index("  21.8 s           4  POST /transfers")
    assert lines[outer + 2] == "  21.7 s           4    + transfer"
    assert lines[outer + 3].strip() == "running SQL for 21.7 s, waits for POST /withdrawals"
    assert "running SQL" not in lines[outer + 1]


@pytest.mark.parametrize("width", [80, 140])
def test_long_labels_and_places_lose_nothing_that_counts(width: int) -> None:
    """Of a label both ends stay, a place is folded, and no number is cut, in a night of eight by eight units."""
    text = drawn(snapshots.busy_night(), width, limit=0)

    assert max(map(len, text.splitlines())) <= width
    assert "organisation/services/accounts/transfers.py:1041 in OrganisationAccounts.transfer_between" in words(text)
    assert "POST /api/v1/" in text
    assert text.count("/transfers\n") or text.count("/transfers ")
    pids = [str(unit.backend_pids[0]) for worker in snapshots.busy_night().workers for unit in worker.live]
    assert all(pid in text.split() for pid in pids)
    assert ("…" in text) == (width == 80)


def test_limit_says_how_many_are_not_shown() -> None:
    """Each table has that many rows at most; zero is all of them."""
    text = drawn(snapshots.busy_night(), limit=3)

    assert text.count("ThreadPoolExecutor-0_") == 3
    assert text.count("... and 61 more (--limit 0 lists all)") == 2
    assert "... and 5 more (--limit 0 lists all)" in text
    assert "more (" not in drawn(snapshots.busy_night(), limit=0)


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("seconds", "bca"),
        ("mean", "cba"),
        ("worst", "acb"),
        ("count", "bac"),
        ("errors", "cab"),
        ("statements", "abc"),
        ("label", "abc"),
    ],
)
def test_labels_are_sorted(sort: str, order: str) -> None:
    """By what is asked for, the most first; labels by the alphabet."""
    counts = (
        stats.LabelCounts("c", None, False, 1, 9, 20.0, 7.0, 1),
        stats.LabelCounts("b", None, False, 9, 1, 30.0, 4.0, 2),
        stats.LabelCounts("a", None, False, 5, 5, 10.0, 8.0, 3),
    )
    worker = snapshots.worker(counts=stats.Counts(labels=counts), pools=())

    rows = drawn(snapshots.snapshot(worker), sort=sort).partition("\nlabels (3)")[2].splitlines()[2:]

    assert "".join(row.split()[-1] for row in rows) == order


@pytest.mark.parametrize(("width", "is_shown"), [(80, False), (100, True)])
def test_place_of_a_label(width: int, is_shown: bool) -> None:
    """It stands behind the label where there is room for both."""
    text = drawn(snapshots.bad_night(), width).partition("\nlabels ")[2]

    assert ("  POST /transfers  bank/counter.py:27 in transfer" in text) == is_shown
    assert "  POST /transfers" in text


def test_live_units_are_sorted() -> None:
    """The oldest first, or by statements or label."""
    live = [
        snapshots.unit(label, thread_id=number, seconds=seconds, statements=statements)
        for number, (label, seconds, statements) in enumerate([("b", 1.0, 5), ("a", 3.0, 1), ("c", 2.0, 9)], 1)
    ]
    snapshot = snapshots.snapshot(snapshots.worker(1, *live, counts=stats.Counts(), pools=()))

    def order(sort: str) -> str:
        lines = drawn(snapshot, sort=sort).splitlines()
        return "".join(line.split()[-1] for line in lines if line.rstrip()[-2:] in (" a", " b", " c"))

    assert [order(sort) for sort in ("seconds", "worst", "statements", "label")] == ["acb", "acb", "cba", "abc"]


def test_sessions_name_what_holds_them() -> None:
    """The view, whom it waits for with its pid, and that nobody is left to hold an orphan."""
    text = drawn(snapshots.bad_night(), 120)

    assert re.search(r" 5101 +4711 +34\.2 s +34\.3 s  POST /withdrawals\s", text)
    assert "waits for POST /withdrawals (5101)" in text
    assert "orphan: no living worker knows it" in text
    assert "pools of this process" not in text


@pytest.mark.parametrize("width", [70, 200])
def test_a_label_that_no_worker_tells_is_marked(width: int) -> None:
    """In a line of its own, so that neither is cut."""
    told = session(unit=snapshots.LONG, is_told_by_server=True)

    first, second, _ = drawn(snapshot_of(told), width).partition("POST /api")[2].splitlines()[:3]

    assert first.endswith("/transfers")
    assert second.strip() == "said by the server"


def test_idle_sessions_take_no_room() -> None:
    """A few of them are listed, for nothing is the matter with them, or all if all is asked for."""
    snapshot = snapshots.snapshot(databases=(snapshots.database(*map(snapshots.session, range(40))),))

    assert "idle (40)" in drawn(snapshot)
    assert "... and 35 more" in drawn(snapshot)
    assert drawn(snapshot, limit=0).count("COMMIT") == 40


def test_fullest_pool_comes_first() -> None:
    """With what is waited for, and a sum over all workers."""
    text = drawn(snapshots.bad_night())

    lines = text[text.index("\npools (2): 19 of 30 connections in use, 1 waited for") :].splitlines()
    assert lines[2].split()[0] == "worker"
    assert lines[3].split() == ["4712", "5", "15", "10", "15", "1", "2", "3.1", "s", "default"]


def test_nobody_publishes() -> None:
    """It is said, and why that may be so; the pools of this process are shown then."""
    text = drawn(snapshots.snapshot(databases=(snapshots.database(),)))

    assert "No worker publishes here" in text
    assert all(reason in words(text) for reason in ("served a request", "UOW_STATS is False", "UOW_STATS_DIR"))
    assert "pools of this process" in text


def test_what_ended_workers_have_counted() -> None:
    """It is told after the last of them too."""
    counts = stats.Counts(units=stats.UnitCounts(200, 198, 2, 0, 0))

    text = drawn(snapshots.snapshot(ended=stats.EndedWorkers(2, counts)))

    assert "No worker publishes here" in text
    assert "units: 200 begun, 198 committed, 2 rolled back" in text


def test_choice_is_said() -> None:
    """Who sees less than there is is told so."""
    text = drawn(snapshots.bad_night().only(label="transfers"), choice="label 'transfers'")

    assert "Listed: label 'transfers'." in text
    assert "live units (1)" in text


def test_explanations_follow_for_each_kind_once() -> None:
    """What it means and what to do, at the end, where it is read first."""
    night = snapshots.bad_night()
    kinds = {trouble.kind for trouble in night.troubles}
    text = words(drawn(replace(night, troubles=night.troubles * 2), explains=True))

    end = text[text.index("what it means, and what to do") :]
    assert all(words(stats.EXPLANATIONS[kind].remedy) in end for kind in kinds)
    assert not any(words(each.remedy) in end for kind, each in stats.EXPLANATIONS.items() if kind not in kinds)
    assert end.count("At the bank:") == len(kinds)
    assert "No trouble: there is nothing to explain." in drawn(snapshots.snapshot(), explains=True)
    chosen = snapshots.bad_night().only(label="nobody's")
    assert "No trouble is listed: there is nothing to explain." in drawn(
        chosen, explains=True, choice="label 'nobody's'"
    )
    assert "what it means" not in drawn(snapshots.bad_night())


def test_hostile_text_of_workers() -> None:
    """Labels, places, threads, hosts and notes cannot command the terminal either."""
    unit = snapshots.unit(HOSTILE, where=HOSTILE, thread=HOSTILE, state=HOSTILE, waits_for=(HOSTILE,), seconds=9.0)
    inner = replace(unit, depth=2)
    counts = stats.Counts(rules={HOSTILE: 1}, labels=(snapshots.label_counts(HOSTILE, where=HOSTILE),))
    pool = snapshots.pool(bind=HOSTILE, class_name=HOSTILE, checked_out=15)
    worker = snapshots.worker(1, unit, inner, host=HOSTILE, counts=counts, pools=(pool,), untold={HOSTILE: 3})
    snapshot = replace(snapshots.snapshot(worker), app=HOSTILE, notes=(HOSTILE,))

    text = drawn(snapshot, 200, explains=True, choice=HOSTILE)

    assert not set(text) & set("\x1b\x07\r\x9b\u202e\u2066")
    assert "[link=http://x]y[/link]" in text


def test_terminal_that_knows_only_ascii() -> None:
    """Three dots stand for what is left out."""
    file = TextIOWrapper(buffer := BytesIO(), encoding="ascii")

    draw(snapshots.busy_night(), Console(file=file, width=80, highlight=False, color_system=None))
    file.flush()

    assert re.search(rb"POST /api/v1/org\S*\.\.\.\S*/transfers", buffer.getvalue())
    assert re.search(rb"SELECT transfer.id FROM .*\.\.\.", buffer.getvalue())


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("POST /transfers", 15, "POST /transfers"),
        ("POST /transfers", 14, "POST /t…nsfers"),
        ("POST /transfers", 1, "…"),
        ("konto/口座/送金/明細", 12, "kont…金/明細"),
    ],
)
def test_middle_is_left_out(text: str, width: int, shown: str) -> None:
    """Both ends of a text stay, in the columns that there are."""
    assert shortened(text, width, "…", keeps_end=True) == shown


# ---- durations


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0, "0.0 s"),
        (0.25, "0.2 s"),
        (9.94, "9.9 s"),
        (10.0, "10.0 s"),
        (34.68, "34.6 s"),
        (59.99, "59.9 s"),
        (60.0, "1 min"),
        (125.0, "2 min 5 s"),
        (3600.0, "1 h"),
        (7325.0, "2 h 2 min"),
        (86400.0, "1 d"),
        (200000.0, "2 d 7 h"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    """A duration is given in its two largest units, below a minute to a tenth of a second."""
    assert duration(seconds) == text

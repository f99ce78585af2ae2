"""What each kind of trouble means, and what to do about it.

Each is told twice: as it looks in the bank of the sample, where a session is a customer, a connection a teller and a
commit the way out of the door, and in plain words with the step to take.
"""

from __future__ import annotations

import typing as t
from collections.abc import Mapping


class Explanation(t.NamedTuple):
    """One kind of trouble."""

    at_the_bank: str
    meaning: str
    remedy: str


EXPLANATIONS: t.Final[Mapping[str, Explanation]] = {
    "aborted-transaction": Explanation(
        "A check was refused, and the customer still stands at the counter and hands in the next one.",
        "A statement has failed and taken the transaction with it. The server refuses everything until a rollback, "
        "and the locks stay.",
        "Look for an except at that line that swallows a database error. Let it go on, or put what may fail into an "
        "inner @transactional, whose savepoint is rolled back alone. To free the locks now: SELECT "
        "pg_terminate_backend(pid), with the backend's pid.",
    ),
    "idle-in-transaction": Explanation(
        "A customer stands at the counter, looks for his glasses and keeps the teller.",
        "The transaction is open and sends nothing: the view does something else meanwhile, a call to another "
        "service, say. Its connection and its locks are kept from everybody else.",
        "Move that work in front of the unit or into current_unit.after_commit(). @transactional(timeout=...) sends "
        "the customer away in time; idle_in_transaction_session_timeout does it on the server. Now: SELECT "
        "pg_terminate_backend(pid).",
    ),
    "leaked-connection": Explanation(
        "The customer has left the bank by the window, and the teller is still kept for him.",
        "The app context has ended, and a connection that was taken in it was never given back. The pool is smaller "
        "by one until the worker ends.",
        "At that line, take the connection by 'with engine.connect() as connection:', or use uow.session, which is "
        "taken back. Join threads before the view returns. Restart the worker to get the connection back.",
    ),
    "pool-exhausted": Explanation(
        "All tellers are busy, and whoever comes in now has to queue.",
        "Every connection that the pool may open is in use. The next request waits for pool_timeout seconds, and "
        "fails after that.",
        "See who holds them, among the live units. If they idle, mend that first. If all of them work, raise "
        "pool_size or max_overflow in SQLALCHEMY_ENGINE_OPTIONS to as many as the worker has threads, and keep "
        "workers times limit below the server's max_connections.",
    ),
    "waiting-for-connection": Explanation(
        "A customer waits for a teller.",
        "A unit needs a connection and the pool has none to give. One that holds a connection already and waits for a "
        "second one can wait for itself (rule UOW110).",
        "See who holds the connections of that worker's pool. Use one session inside a unit. requires_new takes a "
        "connection of its own: let the pool have more of them than the worker has threads.",
    ),
    "blocked": Explanation(
        "Two customers want the same account, and the second waits until the first has walked out.",
        "A statement waits for a row or a table that another transaction has locked. It goes on when that one commits "
        "or rolls back.",
        "Look at the one that it waits for: it idles, or does too much in one unit. Write late in the unit, take rows "
        "in one order everywhere, and bound the wait by SET LOCAL lock_timeout. Now: SELECT pg_terminate_backend(pid) "
        "of the other.",
    ),
    "orphan": Explanation(
        "The customer is gone for good, and nobody told the teller.",
        "The server keeps a session of a process of this host that lives no more, or that has lost it. It holds its "
        "locks until the server notices, which may take hours.",
        "SELECT pg_terminate_backend(pid). Then find out who kills workers: the kernel for their memory, gunicorn for "
        "its --timeout. tcp_keepalives_idle on the server shortens the wait.",
    ),
    "left-prepared": Explanation(
        "A paper was signed by everybody but never stamped, and the money on it belongs to nobody.",
        "A unit over several databases has prepared its part here (UOW_TWO_PHASE) and was cut off. The part holds its "
        "locks over restarts, and stops VACUUM.",
        "If the command is named, run it in that database. If not, the deciding database has to be reached first. "
        "Never guess: the other parts may be committed.",
    ),
    "long-unit": Explanation(
        "A customer has been at the counter for so long that the bank is about to close.",
        "A unit is older than UOW_MAX_UNIT_SECONDS (rule UOW108). It holds a connection, its locks, and dead rows "
        "that VACUUM may not clear.",
        "Make it several units, of a few hundred rows each; read reports in read_only=True units; move what is no "
        "work of the database out of it. timeout= bounds it.",
    ),
    "pool-nearly-full": Explanation(
        "There is hardly a teller left.",
        "Nine of ten connections of a worker's pool are in use. A little more traffic, or one slow view, and requests "
        "wait.",
        "See whether those who hold them work or idle. If they work, give the pool more connections or the app more "
        "workers.",
    ),
    "pool-timeouts": Explanation(
        "Customers have queued for a teller and gone home.",
        "Since its start, requests of this worker have waited for pool_timeout seconds and got no connection.",
        "It may be over. If it comes back, catch it with --watch, and see who holds the connections. Then as for "
        "pool-exhausted.",
    ),
    "leaked-sessions": Explanation(
        "Customers were found in the bank after it had closed.",
        "Sessions or connections have outlived their app context since the start (rule UOW202). They were taken back, "
        "or are lost with their worker.",
        "The log names the line of each. Threads need a context of their own: with app.app_context(): ...",
    ),
    "untold": Explanation(
        "The board on the wall is full.",
        "A worker does or knows more than its board has room for. What is shown is right, but not all of it.",
        "Nothing is lost but the view of it. Many labels come from labels made at run time: give label= a fixed text.",
    ),
}
"""The kinds of trouble, the worst first."""

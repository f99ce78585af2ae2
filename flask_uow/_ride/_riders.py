"""What one connection has been told and has not yet sent: BEGIN, savepoints, settings of the transaction.

A driver's connection asks :class:`Riders` what may wait, and sends what waits in front of the next statement that is
sent anyway. Nothing here talks to a server. Like psycopg2's own, "begun" is a belief: a COMMIT sent as text does not
change it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

SEPARATOR = "; "
# Refused by a server in any state, without a look at any table or function; its log then says why.
FAILING = 'ROLLBACK TO SAVEPOINT "flask_uow: this transaction has failed already"'

# libpq's transaction statuses.
IDLE, IN_TRANSACTION, IN_ERROR = 0, 2, 3

# ASCII on one line, so that what rides looks the same in every encoding, and moves what comes behind it by a line.
_SPACE = r"[ \t]+"
_IDENTIFIER = r'(?:"[ !#$&-:<-~]+"|[A-Za-z_][A-Za-z0-9_$]*)'
# No grammar may read a setting as anything else: a syntax error is one of the whole string, savepoints included. One
# of a single word may be a reserved one, and so may a savepoint's name.
_SETTING = r"(?P<setting>(?=[A-Za-z0-9]*[_.])[A-Za-z][A-Za-z0-9_]*(?:\.[A-Za-z][A-Za-z0-9_]*)*)"
_RESERVED = frozenset(
    """
    all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate collation
    column concurrently constraint create cross current_catalog current_date current_role current_schema current_time
    current_timestamp current_user default deferrable desc distinct do else end except false fetch for foreign freeze
    from full grant group having ilike in initially inner intersect into is isnull join lateral leading left like limit
    localtime localtimestamp natural not notnull null offset on only or order outer overlaps placing primary references
    returning right select session_user similar some symmetric system_user table tablesample then to trailing true union
    unique user using variadic verbose when where window with
    """.split()
)
# These decide how the rest of a string is read, and in which encoding it is to be written.
_READING = frozenset(("backslash_quote", "client_encoding", "escape_string_warning", "standard_conforming_strings"))
_NO_SETTING = _RESERVED | _READING
_VALUE = r"(?:'(?:[ -$&(-:<-\[\]-~]|'')*'|-?[0-9]+(?:\.[0-9]+)?|ON|OFF|TRUE|FALSE|DEFAULT)"
_RIDER = re.compile(
    rf"""
    \s*(?:
        (?P<savepoint> SAVEPOINT ) {_SPACE} (?P<made>{_IDENTIFIER})
      | (?P<release> RELEASE ) {_SPACE} (?:SAVEPOINT{_SPACE})? (?P<released>{_IDENTIFIER})
      | (?P<rollback> ROLLBACK ) {_SPACE} (?:(?:WORK|TRANSACTION){_SPACE})? TO {_SPACE}
            (?:SAVEPOINT{_SPACE})? (?P<kept>{_IDENTIFIER})
      | (?P<set> SET ) {_SPACE} LOCAL {_SPACE} {_SETTING} (?:[ \t]*=[ \t]*|{_SPACE}TO{_SPACE}) {_VALUE}
    )\s*\Z
    """,
    re.IGNORECASE | re.VERBOSE,
)
_FIRST_LETTERS = frozenset("sSrR")


class Riders:
    """What one connection has been told and not yet sent, in order.

    A savepoint in which nothing was said costs nothing: it vanishes with its RELEASE.
    """

    __slots__ = (
        *("_has_namesakes", "_head", "_is_told", "_last_setting", "_savepoints"),
        *("along", "harmless_query", "is_begin_waiting", "is_begun", "is_doomed", "waiting"),
    )

    def __init__(self) -> None:
        #: Whether a transaction is believed open; its BEGIN may still wait.
        self.is_begun = False
        #: Whether that BEGIN waits: the server knows of nothing.
        self.is_begin_waiting = False
        #: Whether it has failed before the server knew of it; its BEGIN then waits still.
        self.is_doomed = False
        #: What waits, BEGIN first.
        self.waiting: list[str] = []
        #: Statements that the next BEGIN takes along, and that are dropped where none is sent: the label of a unit.
        #: In ASCII, each on one line and without ``%``; they are forgotten when the transaction ends.
        self.along: tuple[str, ...] = ()
        #: Set, before a statement that is known to be a harmless read, to its text: it may go without a BEGIN.
        self.harmless_query: str | None = None
        # The names of the open savepoints and where each waits, -1 for one that was sent; inner ones last.
        self._savepoints: list[tuple[str, int]] = []
        # Whether two savepoints of one name were open at once in this transaction.
        self._has_namesakes = False
        # Whether something waits that may fail by itself, so that it is not dropped at COMMIT.
        self._is_told = False
        # Where the last setting waits, if one does that may fail.
        self._last_setting = -1
        # How many of what waits are the BEGIN and what goes along with it.
        self._head = 0

    def is_harmless(self, query: object) -> bool:
        """Whether a statement is the harmless read that was announced, not one that a class of cursors says before it.

        :param query: what the cursor was given; it is announced once.
        """
        if self.harmless_query is None or self.harmless_query != query:
            return False
        self.harmless_query = None
        return True

    def begin(self, statement: str) -> None:
        """Believe that a transaction is open; its BEGIN waits.

        :param statement: the BEGIN, with its options.
        """
        self.is_begun = self.is_begin_waiting = True
        self.waiting.append(statement)
        self.waiting.extend(self.along)
        self._head = len(self.waiting)

    def take_back_begin(self) -> None:
        """Believe again that no transaction is open, after a first statement that could not be sent.

        It stays if something else was said since.
        """
        if self.is_doomed or not self.is_untouched:
            return
        along = self.along
        self.end()
        self.along = along

    def add(self, statements: Iterable[str]) -> None:
        """Let statements wait that change nothing but the transaction; they are dropped where it ends before it speaks.

        :param statements: each alone, without parameters, and known to succeed.
        """
        if self.is_begun:
            self.waiting.extend(statements)
        else:
            self.along += tuple(statements)

    def begun(self) -> None:
        """Believe that a transaction is open whose BEGIN was sent."""
        self.is_begun = True

    def end(self) -> None:
        """Believe that no transaction is open; nothing waits any more."""
        self.is_begun = self.is_begin_waiting = self.is_doomed = self._is_told = self._has_namesakes = False
        self._head = 0
        self.along = ()
        self.harmless_query = None
        self.waiting.clear()
        self._savepoints.clear()

    def defer(self, statement: str, status: int = IN_TRANSACTION) -> bool:
        """Take a statement that can wait, and return whether it was taken; one that was not is sent at once.

        What is not exactly one SAVEPOINT, RELEASE, ROLLBACK TO or SET LOCAL is never taken, nor is a savepoint's name
        that is not known here: the server may know it, or has an error to tell.

        :param statement: its text; one with parameters is not for here.
        :param status: the transaction's status, as :meth:`status` tells it: a failed transaction takes a ROLLBACK TO
            alone, and where there is none nothing waits.
        """
        if status not in (IN_TRANSACTION, IN_ERROR) or statement.lstrip()[:1] not in _FIRST_LETTERS:
            return False
        match = _RIDER.match(statement)
        if match is None or (match["set"] and not _NO_SETTING.isdisjoint(match["setting"].lower().split("."))):
            return False
        if match["rollback"]:
            return self._roll_back_to(_fold(match["kept"]), statement)
        if status == IN_ERROR:
            return False
        if match["release"]:
            return self._release(_fold(match["released"]), statement)
        if match["savepoint"]:
            name = _fold(match["made"])
            is_reserved = name in _RESERVED and match["made"][0] != '"'
            is_namesake = self._find(name) is not None
            if is_reserved or (self._is_told and is_namesake):
                return False  # if what waits fails, the server knows the outer one of two alike alone
            self._has_namesakes |= is_namesake
            self._savepoints.append((name, len(self.waiting)))
        else:
            self._is_told = True
            self._last_setting = len(self.waiting)
        self.waiting.append(statement.strip())
        return True

    def status(self, server_status: int) -> int:
        """The transaction's status: 3 for a doomed one, 2 while something waits, else what the server said last.

        :param server_status: libpq's.
        """
        if self.is_doomed:
            return IN_ERROR
        return IN_TRANSACTION if self.waiting else server_status

    @property
    def is_untouched(self) -> bool:
        """Whether nothing waits but a BEGIN: a read that needs no transaction does not need that either."""
        return self.is_begin_waiting and not self._is_told and not self._savepoints

    @property
    def has_savepoint(self) -> bool:
        """Whether a SAVEPOINT waits: it is lost with a statement that the server cannot parse."""
        return bool(self._savepoints) and self._savepoints[-1][1] >= 0

    @property
    def needs_sound_text(self) -> bool:
        """Whether what waits must not be lost with a string that is refused as a whole: a SAVEPOINT, a RELEASE."""
        return len(self.waiting) > self._head and (self.has_savepoint or any(map(_is_release, self.waiting)))

    @property
    def text(self) -> str:
        """What waits, as one text; it stays until :meth:`sent`, so that an error on the client's side loses nothing."""
        return SEPARATOR.join(self.waiting)

    @property
    def failing_text(self) -> str:
        """What waits, and a statement that makes the transaction's failure known to the server."""
        return SEPARATOR.join([*self.waiting, FAILING])

    def sent(self, *, has_failed: bool = False) -> None:
        """Believe that what waits has reached the server.

        :param has_failed: whether the string failed in which it was: of a bad setting's error one cannot tell whether
            the savepoints behind it were made, so that they are not known any more.
        """
        if has_failed and self._is_told:
            self._savepoints = [(name, place) for name, place in self._savepoints if place < 0]
        elif self.has_savepoint:
            self._savepoints = [(name, -1) for name, _ in self._savepoints]
        self.waiting.clear()
        self.is_begin_waiting = self.is_doomed = self._is_told = False
        self._head = 0

    def forget_savepoints(self, statement: str = "") -> None:
        """Know no savepoint any more, after a text that may have ended some; nothing may wait.

        :param statement: the text; of a RELEASE it is known what it ends.
        """
        del self._savepoints[self._find_released(statement) or 0 :]

    def for_commit(self) -> list[str]:
        """What must go along with COMMIT: a ROLLBACK TO, settings; a BEGIN only with these.

        Savepoints that wait are left out, and so are releases: COMMIT keeps everything.
        """
        if not self._is_told:
            return []
        made = {place for _, place in self._savepoints if place >= 0}
        kept = [text for place, text in enumerate(self.waiting) if place not in made and not _is_release(text)]
        return kept if len(kept) > self._head else []

    def way_back(self, statement: str) -> str:
        """What undoes the savepoint that a statement releases, if a setting waits in that; else nothing.

        Who releases a savepoint believes in nothing of it any more, and does not go back to it after an error.
        """
        depth = self._find_released(statement)
        if depth is None or not self._has_setting(depth):
            return ""
        if any(text[:3].upper() == "SET" for text in self.waiting[self._head : self._savepoints[depth][1]]):
            return ""  # which may be the one that fails, before there is a savepoint
        return f"ROLLBACK TO SAVEPOINT {_quote(self._savepoints[depth][0])}"

    def go_back(self, way_back: str) -> None:
        """Let what undoes a savepoint wait, after the error of a setting in it.

        :param way_back: the text of :meth:`way_back`.
        """
        self.waiting.append(way_back)
        self._last_setting = -1
        self._is_told = True

    def _has_setting(self, depth: int) -> bool:
        """Whether a setting waits in a savepoint."""
        return self._is_told and self._last_setting > self._savepoints[depth][1]

    def _release(self, name: str, statement: str) -> bool:
        depth = self._find(name)
        if depth is None:
            return False
        if self._has_setting(depth):
            return False  # if it fails, it fails in the savepoint
        is_sent = self._savepoints[depth][1] < 0
        self._drop_waiting(place for _, place in self._savepoints[depth:])
        del self._savepoints[depth:]
        if is_sent:
            self.waiting.append(statement.strip())
        return True

    def _roll_back_to(self, name: str, statement: str) -> bool:
        depth = self._find(name)
        if depth is None:
            return False
        place = self._savepoints[depth][1]
        if place < 0 and self.waiting and self._has_namesakes:
            return False  # what waits may have ended an inner one of that name, and is not to be dropped
        del self._savepoints[depth + 1 :]
        del self.waiting[place + 1 :]  # all of it, where the savepoint was sent
        self._last_setting = min(self._last_setting, place)
        self.is_doomed = False
        if place < 0:
            self.waiting.append(statement.strip())
            self._is_told = True
        return True

    def _find_released(self, statement: str) -> int | None:
        """How deep the savepoint lies that a statement releases; None for any other statement."""
        match = _RIDER.match(statement)
        return self._find(_fold(match["released"])) if match is not None and match["release"] else None

    def _find(self, name: str) -> int | None:
        """How deep the innermost savepoint of a name lies."""
        for depth in range(len(self._savepoints) - 1, -1, -1):
            if self._savepoints[depth][0] == name:
                return depth
        return None

    def _drop_waiting(self, places: Iterable[int]) -> None:
        """Drop savepoints that wait, none of which has an open one behind it; settings between them stay."""
        for place in sorted((place for place in places if place >= 0), reverse=True):
            del self.waiting[place]


def is_rider(statement: str) -> bool:
    """Whether a text is a statement that may wait, where its names are known."""
    return statement.lstrip()[:1] in _FIRST_LETTERS and _RIDER.match(statement) is not None


def _fold(identifier: str) -> str:
    """The name that the server makes of an identifier; it cuts long ones, which are then not known here."""
    return identifier[1:-1] if identifier.startswith('"') else identifier.lower()


def _quote(name: str) -> str:
    """The identifier of a folded name, which has no quotes in it."""
    return f'"{name}"'


def _is_release(text: str) -> bool:
    return text[:7].upper() == "RELEASE"

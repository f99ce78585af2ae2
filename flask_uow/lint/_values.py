"""What an expression may stand for, as far as sessions and units are concerned, and the libraries' names for it."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._scopes import Module, Scope


class Role(Enum):
    """What something is that has no source in the project."""

    SESSION = "a session, or a scoped_session"
    OWN_SESSION = "a session that the code has made, and may close"
    FACTORY = "makes sessions"
    DATABASE = "has a session"
    TRANSACTION = "the session's connection or transaction"
    TRANSACTIONAL = "transactional itself"
    UNIT = "what transactional(...) returns"
    WITHOUT_UNIT = "what transactional(propagation='never') returns"
    FOREIGN = "nothing that is looked for"


@dataclass(frozen=True, slots=True)
class Method:
    """A method of a session, bound: ``db.session.commit``.

    :param is_own: whether the session is one that the code has made.
    :param makes_session: whether it belongs to what makes sessions: ``sessionmaker.begin``.
    """

    name: str
    is_own: bool = False
    makes_session: bool = False


@dataclass(frozen=True, slots=True)
class External:
    """Something of a library, by its full name."""

    path: str


@dataclass(frozen=True, slots=True)
class ModuleValue:
    """A module of the project."""

    module: Module


@dataclass(frozen=True, slots=True)
class ClassValue:
    """A class of the project."""

    node: ast.ClassDef
    scope: Scope


@dataclass(frozen=True, slots=True)
class FunctionValue:
    """A function of the project, or a lambda."""

    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    scope: Scope


@dataclass(frozen=True, slots=True)
class Instance:
    """An object of a class of the project."""

    cls: ClassValue


Value = Role | Method | External | ModuleValue | ClassValue | FunctionValue | Instance

SESSIONS = frozenset((Role.SESSION, Role.OWN_SESSION))
COMMITS = frozenset(("commit", "begin", "prepare"))
ROLLBACKS = frozenset(("rollback", "close", "remove", "reset", "invalidate", "close_all"))
CLOSES = ROLLBACKS - {"rollback"}
REACHING_PAST = frozenset(("connection", "get_transaction"))
WRITES = frozenset(
    "add add_all delete delete_all merge merge_all flush "
    "bulk_save_objects bulk_insert_mappings bulk_update_mappings".split()
)
STATEMENTS = frozenset(("execute", "scalar", "scalars"))
KNOWN_METHODS = COMMITS | ROLLBACKS | REACHING_PAST | WRITES | STATEMENTS


# What people call a session that is handed to them.
USUAL_NAMES = frozenset(("DBSession", "Session", "db_session", "dbsession", "session", "_session"))

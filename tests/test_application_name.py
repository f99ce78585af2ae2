"""The name that connections carry on the server."""

from __future__ import annotations

import os
import re
import socket

import pytest

from flask_uow._application_name import (
    application_name,
    as_part,
    host_mark,
    is_of_another_host,
    is_own_name,
    like_pattern,
    rename,
    unit_label,
    worker_pid,
)


def _is_like(name: str, pattern: str) -> bool:
    """SQL's LIKE with a backslash as escape character."""
    tokens = re.findall(r"\\(.)|(.)", pattern, flags=re.DOTALL)
    regex = "".join(
        re.escape(escaped) if escaped else {"%": ".*", "_": "."}.get(plain, re.escape(plain))
        for escaped, plain in tokens
    )
    return re.fullmatch(regex, name, flags=re.DOTALL) is not None


@pytest.mark.parametrize(
    ("app_name", "expected"),
    [
        ("bank", "flask_uow:bank:4711@3f9a"),
        ("my_bank.web", "flask_uow:my_bank.web:4711@3f9a"),
        ("Bänk", "flask_uow:B?nk~d9d002:4711@3f9a"),
        ("a\nb\x1b[31m\x7f", "flask_uow:a?b?[31m?~7386e5:4711@3f9a"),
        ("bank:eu", "flask_uow:bank?eu~55d6b6:4711@3f9a"),
        ("", "flask_uow::4711@3f9a"),
        ("o'brien\\; 100%", "flask_uow:o?brien?? 100?~fc488f:4711@3f9a"),
    ],
)
def test_name_says_app_pid_and_host(app_name: str, expected: str) -> None:
    """The name is printable ASCII; an app's name that had to be changed ends with a mark of what it was."""
    assert application_name(app_name, 4711, "3f9a") == expected


@pytest.mark.parametrize("pid", [1, 4_194_304, 4_294_967_295])
def test_long_app_name_leaves_the_pid(pid: int) -> None:
    """A long app name is cut, the pid and the host never."""
    name = application_name("x" * 200, pid)

    assert len(name.encode()) <= 63
    assert re.search(rf"x~[0-9a-f]{{6}}:{pid}@{host_mark()}$", name)
    assert _is_like(name, like_pattern("x" * 200))


@pytest.mark.parametrize("app_name", ["a", "a_b", "100%", "back\\slash", "bank:eu", "Bänk", "a b", "x" * 99, "a\\%_"])
def test_pattern_matches_its_own_app(app_name: str) -> None:
    """Each app's pattern finds its own names, with every special character taken literally."""
    assert _is_like(application_name(app_name, 12), like_pattern(app_name))


@pytest.mark.parametrize(
    ("app_name", "other"),
    [
        ("a", "ab"),
        ("a", "a_b"),
        ("a_b", "axb"),
        ("a", "a:b"),
        ("a", "a:5"),
        ("a%", "abc"),
        ("a\\", "a"),
        ("%", "a"),
        ("Bänk", "Bönk"),
        ("a:b", "a?b"),
        ("x" * 60 + "public", "x" * 60 + "intern"),
    ],
)
def test_pattern_leaves_other_apps_alone(app_name: str, other: str) -> None:
    """No app's pattern finds another app's names."""
    assert not _is_like(application_name(other, 12), like_pattern(app_name))


def test_label_may_follow_the_host() -> None:
    """What is appended after a colon changes neither the app nor the pid."""
    name = application_name("bank", 12) + ":POST /transfers/<int:id>"

    assert _is_like(name, like_pattern("bank"))
    assert worker_pid(name) == 12
    assert not is_of_another_host(name)


@pytest.mark.parametrize("label", ["", ":GET /x@0000"])
def test_a_name_of_an_older_version_has_no_host(label: str) -> None:
    """It is read as it was: nobody knows that it is another host's."""
    name = f"flask_uow:bank:12{label}"

    assert (is_own_name(name), worker_pid(name), is_of_another_host(name)) == (True, 12, False)
    assert unit_label(name) == (label[1:] or None)


@pytest.mark.parametrize("what", ["host", "process numbers"])
def test_hosts_and_containers_are_told_apart(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the host's name and by whose process numbers are counted; where that is not known, by the name."""
    names = [application_name("bank", 12)]
    if what == "host":
        monkeypatch.setattr(socket, "gethostname", lambda: "another")
    else:
        monkeypatch.setattr(os, "readlink", lambda path: "pid:[1]")
    names.append(application_name("bank", 12))
    monkeypatch.setattr(os, "readlink", _fail)
    names.append(application_name("bank", 12))

    assert len(set(names)) == 3
    assert [is_of_another_host(name) for name in names] == [True, True, False]


def _fail(path: str) -> str:
    raise FileNotFoundError(path)


@pytest.mark.parametrize(
    ("label", "read"),
    [
        ("POST /transfers/<int:id>", "POST /transfers/<int:id>"),
        ("nightly: 7", "nightly: 7"),
        ("it's 5 % \\ done; Bänk\n", "it?s 5 ? ? done? B?nk?"),
        ("x" * 99, "x" * 39),
        ("", None),
    ],
)
def test_a_label_is_read_out_of_the_name_again(label: str, read: str | None) -> None:
    """As far as the server has room for it; app, process and host stay whole."""
    name = application_name("bank", 123)
    statement = rename(name, label)
    server_name = statement.removeprefix("SET LOCAL application_name = '").removesuffix("'")

    assert len(server_name) <= 63
    assert unit_label(server_name) == read
    assert (worker_pid(server_name), _is_like(server_name, like_pattern("bank"))) == (123, True)


def test_a_name_without_room_for_a_label_has_none() -> None:
    """It is the connection's own then, with its whole pid."""
    name = application_name("x" * 200, 2**31)
    statement = rename(name, "POST /transfers")

    assert statement == f"SET LOCAL application_name = '{name}'"
    assert unit_label(name) is None


@pytest.mark.parametrize(
    "name",
    ["psql", "", "flask_uow:bank", "flask_uow:bank:", "flask_uow:bank:x", "x:a:1", "flask_uow:a:1@x", "flask_uow:a:1@"],
)
def test_foreign_names_are_not_ours(name: str) -> None:
    """A name from elsewhere has no worker's pid in it."""
    assert not is_own_name(name)
    assert worker_pid(name) is None
    assert unit_label(name) is None


@pytest.mark.parametrize("odd", ["'", "''", "\\", "\\'", "\n", "\0", "%s", ";", "\ud800"])
def test_no_name_and_no_label_ends_a_text_of_sql(odd: str) -> None:
    """Neither where a backslash escapes nor where it does not; nor does a name that the app gave its connections."""
    name = f"flask_uow:{odd}:12"
    statements = [rename(application_name(odd, 12), odd), rename(name, odd) if is_own_name(name) else "''"]

    for statement in statements:
        assert re.fullmatch(r"(?:SET LOCAL application_name = )?'[^'\\%;\n\0]*'", statement)
    assert not set(as_part(odd)) & set("'\\%;:\n\0")

"""The command's page in ``docs/``: what it says of conditions, troubles and JSON is what the code does."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from docutils import core, nodes  # type: ignore[import-untyped]
from flask import Flask

import flask_uow
from flask_uow import UnitOfWork, stats
from flask_uow._cli import db_session_stats
from flask_uow._watch import KEPT, MAX_SECONDS, MIN_SECONDS
from flask_uow.stats import _values
from tests import snapshots
from tests.faults.bank.faults import FAULTS
from tests.pictures.db_session_stats import pictures

DOCS = Path(__file__).parents[1] / "docs"
OF_SPHINX = {"api", "changes", "index", "life-of-a-session"}
"""Pages with directives that docutils alone does not know."""
MODULES = {"exceptions", "signals", "stats", "testing"}
PAGE = (DOCS / "db-session-stats.rst").read_text(encoding="utf-8")
SIMPLE: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}

Key = tuple[str, str]


@pytest.fixture(scope="module")
def page() -> Any:
    """The page as docutils reads it; a warning is an error."""
    return core.publish_doctree(PAGE, settings_overrides={"halt_level": 2, "report_level": 2})


@pytest.fixture(scope="module")
def schema(page: Any) -> dict[str, dict[str, Key]]:
    """The documented objects: of each key its type and its unit."""
    sections = {section.next_node(nodes.title).astext(): section for section in page.findall(nodes.section)}
    objects = sections["The JSON document"].findall(nodes.section)
    found = {section.next_node(nodes.title).astext(): dict(_keys(section)) for section in objects}
    del found["The JSON document"]
    return found


def _keys(section: Any) -> Iterator[tuple[str, Key]]:
    for row in list(section.findall(nodes.row))[1:]:
        key, kind, unit, meaning = (entry.astext() for entry in row.children)
        assert meaning
        yield key, (kind, unit)


def test_pages_are_built_without_a_warning(tmp_path: Path) -> None:
    """By Sphinx, with the API from the docstrings."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (built.returncode, built.stderr) == (0, "")
    api = (tmp_path / "api.html").read_text(encoding="utf-8")
    assert all(f'id="flask_uow.{name}"' in api for name in flask_uow.__all__ if name not in MODULES)
    life = (tmp_path / "life-of-a-session.html").read_text(encoding="utf-8")
    assert re.search(r"flushed +persistent +idle in transaction: BEGIN READ WRITE; INSERT INTO customer", life)
    assert re.search(r"walked out +detached +idle: COMMIT", life)


@pytest.mark.parametrize("name", sorted({page.stem for page in DOCS.glob("*.rst")} - OF_SPHINX))
def test_page_renders(name: str) -> None:
    """Without a warning, and with no picture or link that leads nowhere."""
    text = (DOCS / f"{name}.rst").read_text(encoding="utf-8")
    page = core.publish_doctree(text, settings_overrides={"halt_level": 2, "report_level": 2})

    assert not list(page.findall(nodes.problematic))
    links = [link["refuri"] for link in page.findall(nodes.reference)]
    pictures = [image["uri"] for image in page.findall(nodes.image)]
    assert all((DOCS / address).exists() for address in (*links, *pictures))


def test_every_fault_is_described() -> None:
    """And none that the bank is spared."""
    described = (DOCS / "faults.rst").read_text(encoding="utf-8")
    table = described[described.index("fault    ") : described.index("**What must hold.**")]

    assert re.findall(r"^(\w.*?)  ", table, re.MULTILINE)[1:] == list(FAULTS)


def test_every_threat_has_its_tests() -> None:
    """Each row of the page on security names some, and there are those."""
    text = (DOCS / "security.rst").read_text(encoding="utf-8")
    page = core.publish_doctree(text, settings_overrides={"halt_level": 2, "report_level": 2})
    tests = "\n".join(file.read_text(encoding="utf-8") for file in Path(__file__).parent.rglob("test_*.py"))

    bodies = [row for body in page.findall(nodes.tbody) for row in body.findall(nodes.row)]
    named = [set(re.findall(r"\btest_\w+", row.astext())) for row in bodies]

    assert len(named) >= 15
    assert all(named)
    assert not {name for row in named for name in row if f"\ndef {name}(" not in tests}


def test_every_option_is_described() -> None:
    """And none that the command does not have."""
    described = PAGE[PAGE.index("What is shown") : PAGE.index("Conditions\n")]

    options = {name for option in db_session_stats.params for name in option.opts}
    assert options == {word.strip("`,.") for word in described.split() if word.startswith("``--")}
    assert f"last {KEPT} pictures" in described
    assert f"at least {MIN_SECONDS:g} and at most {MAX_SECONDS}" in " ".join(described.split())


def test_every_condition_is_described(page: Any) -> None:
    """In the order of the help."""
    rows = next(table for table in page.findall(nodes.table) if "condition" in table.astext()).findall(nodes.row)

    assert tuple(row.children[0].astext() for row in list(rows)[1:]) == stats.condition_forms()


def test_every_trouble_is_explained_as_by_the_command(page: Any) -> None:
    """In the same words, the worst first."""
    section = next(each for each in page.findall(nodes.section) if each.next_node(nodes.title).astext() == "Troubles")
    items = [[child.astext() for child in item.children] for item in section.findall(nodes.definition_list_item)]

    told = {
        kind: f"At the bank: {each.at_the_bank}\n\n{each.meaning}\n\n{each.remedy}"
        for kind, each in stats.EXPLANATIONS.items()
    }
    assert [(kind, _unwrapped(text)) for kind, text in items] == list(told.items())


def test_every_value_is_described(schema: dict[str, dict[str, Key]]) -> None:
    """Each class with each of its attributes, their types, and seconds and bytes as such."""
    for name, keys in schema.items():
        hints = typing.get_type_hints(getattr(stats, name), vars(_values))
        fields = [field.name for field in dataclasses.fields(getattr(stats, name))]
        assert {key: kind for key, (kind, _) in keys.items()} == {field: _type(hints[field]) for field in fields}, name
        for key, (kind, unit) in keys.items():
            is_time = kind.startswith("number") and key.rpartition("_")[2] == "seconds"
            assert unit == ("s" if is_time else "bytes" if key.endswith("_bytes") else "-"), (name, key)


@pytest.mark.parametrize("name", ["bad_night", "busy_night", "everything", "nothing"])
def test_a_document_is_as_described(
    schema: dict[str, dict[str, Key]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Each key is there, of its type, and no other, in what the command prints."""
    seen = {"everything": _everything, "nothing": snapshots.snapshot}.get(name) or getattr(snapshots, name)
    monkeypatch.setattr(stats, "snapshot", seen)
    app = Flask("bank")
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    UnitOfWork(app)

    document = json.loads(app.test_cli_runner().invoke(args=["db-session-stats", "--json"]).stdout)

    visited = set(_check(document, "Snapshot", "document", schema))
    assert document["version"] == stats.VERSION
    assert name != "everything" or visited == set(schema)


def _everything() -> stats.Snapshot:
    """A snapshot in which every kind of value occurs."""
    night = snapshots.bad_night()
    prepared = stats.PreparedTransaction("n", "bank", 9.0, "a", "b", "7", "committed")
    (database,) = night.databases
    file = stats.SQLiteDatabase("/bank.db", 4096, 0, "wal", 4711)
    worker = dataclasses.replace(night.workers[0], untold={"labels": 3})
    return dataclasses.replace(
        night,
        databases=(dataclasses.replace(database, sqlite=file, prepared=(prepared,), blockers=database.sessions[:1]),),
        workers=(worker,),
        notes=("A note.",),
    )


def _check(value: Any, kind: str, place: str, schema: Mapping[str, Mapping[str, Key]]) -> Iterator[str]:
    """Compare a value with its documented type, and give the objects that were met."""
    if value is None:
        assert kind.endswith(" or null"), place
        return
    kind = kind.removesuffix(" or null")
    container, _, inner = kind.partition(" of ")
    if inner:
        assert type(value).__name__ == {"list": "list", "map": "dict"}[container], place
        for key, each in value.items() if container == "map" else enumerate(value):
            yield from _check(each, inner, f"{place}[{key!r}]", schema)
    elif kind in schema:
        assert set(value) == set(schema[kind]), place
        yield kind
        for key, each in value.items():
            yield from _check(each, schema[kind][key][0], f"{place}.{key}", schema)
    elif kind == "time":
        assert datetime.fromisoformat(value).isoformat() == value, place
        assert datetime.fromisoformat(value).tzinfo is not None, place
    else:
        # True is an int as well.
        assert type(value) in SIMPLE[kind], place


def _type(hint: Any) -> str:
    """Say in the page's words what a hint says in Python's."""
    if hint in (str, int, float, bool, datetime):
        return {str: "string", int: "integer", float: "number", bool: "boolean", datetime: "time"}[hint]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return f"{_type(inner[0])} or null"
    if origin is tuple:
        return f"list of {_type(inner[0])}"
    if origin is Mapping:
        return f"map of {_type(inner[1])}"
    return str(hint.__name__)


def _unwrapped(text: str) -> str:
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


@pytest.mark.parametrize("name", sorted(path.stem for path in DOCS.glob("*.rst")))
def test_the_command_takes_what_a_page_writes_of_it(name: str) -> None:
    """Each of its options that stands in a line of text, with a value that it may have."""
    text = (DOCS / f"{name}.rst").read_text(encoding="utf-8")
    for words in re.findall(r"``flask db-session-stats ([^`]+)``", text):
        db_session_stats.make_context("db-session-stats", words.split())
    options = {name for option in db_session_stats.params for name in option.opts}
    for option, value in re.findall(r"``(--\S+) ([^`\s]+)``", text):
        if option in options and not re.search("[A-Z]", value):
            db_session_stats.make_context("db-session-stats", [option, value])


def test_pictures_are_what_the_command_draws() -> None:
    """``make pictures`` would change no word of them."""
    for name, svg in pictures().items():
        kept = (Path(__file__).parents[1] / "docs" / f"{name}.svg").read_text(encoding="utf-8")
        assert _words(kept) == _words(svg), name


def _words(svg: str) -> list[str]:
    """Return its words; where in a line one style ends and the next begins depends on rich's version."""
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    return " ".join(texts).replace("&#160;", " ").replace(" ,", ",").split()

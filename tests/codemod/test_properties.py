"""Views made at random: whatever the codemod makes of one answers and commits as it did before."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flask_uow.lint import Settings, check_paths
from tests.codemod.sources import after, ask, whole

pytestmark = pytest.mark.filterwarnings("ignore::flask_uow.exceptions.RuleWarning")

EXAMPLES = 60
# What a request asks for decides the ways: each flag is a letter of its path.
FLAGS = "abc"
REQUESTS = [f"/{path}" for path in ("-", "a", "b", "c", "ab", "ac", "bc", "abc")]

SIMPLE = (
    "db.session.add(Account(owner=next(names)))",
    "db.session.get(Account, 1).balance += 1",
    "db.session.commit()",
    "db.session.commit()",
    "db.session.flush()",
    "db.session.rollback()",
    "count = db.session.query(Account).count()",
    'flash("done")',
    "helper()",
    "writer()",
    "fresh = Account(owner=next(names)); db.session.add(fresh)",
    "pass",
)
LAST = (
    'return "answer"',
    "return str(db.session.query(Account).count())",
    "abort(409)",
    'raise LookupError("odd")',
    "return {'id': Account(owner='x').id}",
)

HELPERS = """
names = (f"n{number}" for number in range(10_000))

def helper():
    return [account.owner for account in db.session.scalars(db.select(Account))]

def writer():
    db.session.get(Account, 1).balance += 10

@app.errorhandler(LookupError)
def odd(error):
    return "odd", 500
"""


def _indented(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _if(flag: str, body: list[str], other: list[str]) -> list[str]:
    return [f'if "{flag}" in flags:', *_indented(body), *(["else:", *_indented(other)] if other else [])]


def _try(body: list[str], handlers: list[str]) -> list[str]:
    return ["try:", *_indented(body), "except (IntegrityError, LookupError):", *_indented(handlers)]


def _for(body: list[str]) -> list[str]:
    return ["for _ in flags:", *_indented(body)]


def _with(body: list[str]) -> list[str]:
    return ["with db.session.no_autoflush:", *_indented(body)]


def _block(statements: list[list[str]]) -> list[str]:
    return [line for statement in statements for line in statement]


simple = st.sampled_from(SIMPLE).map(lambda line: line.split("; "))
last = st.sampled_from(LAST).map(lambda line: [line])


def _larger(inner: st.SearchStrategy[list[str]]) -> st.SearchStrategy[list[str]]:
    block = st.lists(inner, min_size=1, max_size=4).map(_block)
    handlers = st.sampled_from(
        [
            ["db.session.rollback()", "raise"],
            ["db.session.rollback()", 'return "caught", 409'],
            ["db.session.rollback()"],
            ["pass"],
            ['return "caught", 409'],
        ]
    )
    return st.one_of(
        st.builds(_if, st.sampled_from(FLAGS), block, st.one_of(st.just([]), block)),
        st.builds(_try, block, handlers),
        st.builds(_for, block),
        st.builds(_with, block),
    )


statements = st.recursive(st.one_of(simple, simple, simple, last), _larger, max_leaves=6)
# Most views end in a commit, and an answer.
endings = st.sampled_from(
    [
        ["db.session.commit()", 'return "end"'],
        ["db.session.commit()", 'return {"owners": helper()}'],
        ['return "end"'],
    ]
)
views = st.builds(lambda body, end: _block([*body, end]), st.lists(statements, min_size=1, max_size=4), endings)


def _source(view: list[str]) -> str:
    head = ["", '@app.post("/<flags>")', "def view(flags):"]
    return whole(HELPERS) + "\n".join([*head, *_indented(view), ""])


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(view=views)
def test_it_does_what_it_did(view: list[str]) -> None:
    """On every way: the same answers, and the same rows on a second connection; and a second run finds nothing."""
    source = _source(view)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "code").mkdir()
        changed, report = after(folder / "code", source)
        again, second = after(folder / "code", changed)

        assert second.moved == 0
        assert again == changed
        if report.moved:
            was = ask(source, folder / "before.sqlite", REQUESTS)
            assert ask(changed, folder / "after.sqlite", REQUESTS) == was
            found = check_paths([folder / "code"], Settings(folder)).findings
            assert {finding.code for finding in found} <= {"UOW301", "UOW302", "UOW304"}

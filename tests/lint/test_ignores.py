"""``# uow: ignore[...]``: what it takes back, and when it is itself a finding."""

from pathlib import Path

import pytest

from tests.lint.sources import assert_as_marked, check, found

HEAD = "from flask_uow import UnitOfWork\nuow = UnitOfWork()\n"

IGNORES = {
    "in the line": ("uow.session.commit()  # uow: ignore[UOW301]", []),
    "in small letters, without spaces": ("uow.session.commit()  #UOW:ignore[uow301]", []),
    "behind another comment": ("uow.session.commit()  # noqa  # uow: ignore[UOW301]", []),
    "several rules": ("uow.session.commit(); uow.session.rollback()  # uow: ignore[UOW301, UOW302]", []),
    "in a line of the call": ("uow.session.commit(\n    # uow: ignore[UOW301]\n)", []),
    "another rule": ("uow.session.commit()  # uow: ignore[UOW302]", ["3: UOW301", "3: UOW307"]),
    "one too many": ("uow.session.commit()  # uow: ignore[UOW301, UOW105]", ["3: UOW307"]),
    "another line": ("uow.session.commit()\n# uow: ignore[UOW301]", ["3: UOW301", "4: UOW307"]),
    "no rule": ("uow.session.commit()  # uow: ignore", ["3: UOW301", "3: UOW307"]),
    "an empty list": ("uow.session.commit()  # uow: ignore[]", ["3: UOW301", "3: UOW307"]),
    "an unknown rule": ("pass  # uow: ignore[UOW999]", ["3: UOW307"]),
    "itself": ("pass  # uow: ignore[UOW307]", ["3: UOW307"]),
    "in a text": ("'# uow: ignore[UOW301]'; uow.session.commit()", ["3: UOW301"]),
    "in a longer word": ("uow.session.commit()  # uow: ignored", ["3: UOW301"]),
}


@pytest.mark.parametrize(("source", "left"), IGNORES.values(), ids=IGNORES)
def test_ignores(tmp_path: Path, source: str, left: list[str]) -> None:
    """A comment takes back the rules that it names, in its line; one of no use is a finding."""
    assert found(check(tmp_path, f"{HEAD}{source}\n")) == left


def test_ignore_at_the_head_of_a_function(tmp_path: Path) -> None:
    """A finding about a function is ignored in its first lines, not in its body."""
    assert_as_marked(
        tmp_path,
        """
        @app.post("/a")
        def a(
            number,
        ):  # uow: ignore[UOW304]
            db.session.add(1)

        @app.post("/b")
        def b():  # UOW304
            db.session.add(1)  # uow: ignore[UOW304] UOW307
        """,
    )


def test_unused_ignore_says_which(tmp_path: Path) -> None:
    """And where it stands, so that an editor can delete it."""
    (finding,) = check(tmp_path, "x = 1  # uow: ignore[UOW301]\n").findings

    assert (finding.line, finding.column) == (1, 8)
    assert finding.text == "'# uow: ignore[UOW301]' has no UOW301 to ignore. Delete what is not needed."


def test_rule_that_is_left_out_may_be_ignored_as_well(tmp_path: Path) -> None:
    """A project that switches a rule off for a while keeps its comments."""
    source = f"{HEAD}uow.session.commit()  # uow: ignore[UOW301]\nuow.session.rollback()  # uow: ignore[UOW301]\n"

    assert found(check(tmp_path, source, ignore=("UOW301",))) == ["4: UOW302"]
    assert found(check(tmp_path, source, ignore=("UOW302", "UOW307"))) == []

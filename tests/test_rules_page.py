"""The page of the rules: what it shows as broken breaks the rule, and what it shows in its place breaks none."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docutils import core, nodes  # type: ignore[import-untyped]

from flask_uow import testing
from flask_uow._rules import RULES
from flask_uow.exceptions import RuleViolationError

PAGE = (Path(__file__).parents[1] / "docs" / "rules.rst").read_text(encoding="utf-8")

pytestmark = pytest.mark.filterwarnings("ignore::flask_uow.exceptions.RuleWarning")


def sections() -> Iterator[tuple[str, list[str]]]:
    """The title of each section, and the code in it; the first is the page's own."""
    page = core.publish_doctree(PAGE, settings_overrides={"halt_level": 2, "report_level": 2})
    for section in [page, *page.findall(nodes.section)]:
        blocks = [block.astext() for block in section.children if isinstance(block, nodes.literal_block)]
        yield section.next_node(nodes.title).astext(), blocks


OF_TIME = frozenset(("UOW108", "UOW109"))
"""A busy machine may break these by itself."""

PAGES = dict(sections())
((_, (APP,)), *EXAMPLES) = PAGES.items()


@pytest.fixture
def names(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What the page's app is made of, with two accounts in its books."""
    names: dict[str, Any] = {"__name__": "examples"}
    exec(APP.replace("sqlite:///bank.sqlite", f"sqlite:///{tmp_path / 'bank.sqlite'}"), names)
    app, uow = names["app"], names["uow"]
    with app.app_context(), uow.transactional():
        names["Base"].metadata.create_all(uow.session.connection())
        uow.session.add(names["Owner"](id=1, name="Ada"))
        uow.session.flush()
        uow.session.add_all([names["Account"](id=number, balance=100, owner_id=1) for number in (1, 2)])
    yield names
    names.clear()  # with what an example has kept open


def codes(names: dict[str, Any], block: str, *, apart_from: frozenset[str] = frozenset()) -> set[str]:
    """Which rules an example breaks."""
    raised = set()
    with testing.record(names["app"]) as seen:
        try:
            with names["app"].app_context():
                exec(block, names)
        except RuleViolationError as error:
            raised.add(error.code)
    return {*seen.codes, *raised} - apart_from


def test_every_rule_is_described() -> None:
    """By its code and title, and by two examples."""
    described = [re.fullmatch(r"(UOW\d+): (.*)", title) for title, _ in EXAMPLES]

    assert [match and match[1] for match in described] == list(RULES)
    for match, rule in zip(described, RULES.values(), strict=True):
        assert match is not None
        assert rule.title.startswith(match[2].partition(", ")[0])
    assert {len(blocks) for _, blocks in EXAMPLES} == {2}


@pytest.mark.parametrize(("title", "blocks"), EXAMPLES, ids=[title[:6] for title, _ in EXAMPLES])
def test_what_is_shown_first_breaks_the_rule(title: str, blocks: list[str], names: dict[str, Any]) -> None:
    """And no other."""
    assert codes(names, blocks[0], apart_from=OF_TIME - {title[:6]}) == {title[:6]}


@pytest.mark.parametrize(("title", "blocks"), EXAMPLES, ids=[title[:6] for title, _ in EXAMPLES])
def test_what_is_shown_in_its_place_breaks_none(title: str, blocks: list[str], names: dict[str, Any]) -> None:
    """Not even while its context ends."""
    assert codes(names, blocks[1], apart_from=OF_TIME) == set()

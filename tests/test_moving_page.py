"""The page for who comes from Flask-SQLAlchemy: its code runs in the order of its steps, and each does what it says."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docutils import core, nodes  # type: ignore[import-untyped]
from flask import Flask

from flask_uow import testing

PAGE = (Path(__file__).parents[1] / "docs" / "moving-in.rst").read_text(encoding="utf-8")

pytestmark = pytest.mark.filterwarnings("ignore::flask_uow.exceptions.RuleWarning")


@pytest.fixture
def names(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What all of its code has made."""
    page = core.publish_doctree(PAGE, settings_overrides={"halt_level": 2, "report_level": 2})
    names: dict[str, Any] = {"__name__": "examples"}
    for block in page.findall(nodes.literal_block):
        exec(block.astext().replace("sqlite:///bank.sqlite", f"sqlite:///{tmp_path / 'bank.sqlite'}"), names)
    yield names
    with names["app"].app_context():
        names["db"].engine.dispose()


@pytest.fixture
def app(names: dict[str, Any]) -> Flask:
    """The app of the first nine steps."""
    app: Flask = names["app"]
    return app


def test_there_are_ten_steps() -> None:
    """As its title says."""
    assert re.findall(r"^(\d+)\. ", PAGE, re.MULTILINE) == [str(number) for number in range(1, 11)]


def test_a_view_by_hand_still_works_beside_it(app: Flask) -> None:
    """And breaks no rule, for it is no unit's."""
    client = app.test_client()
    client.post("/accounts")
    with testing.record(app) as seen:
        answer = client.post("/before/deposits", json={"account": 1, "amount": 5})

    assert answer.get_json() == {"balance": 5}
    assert seen.codes == []


def test_each_view_after_its_step_is_one_unit(app: Flask) -> None:
    """And breaks no rule."""
    client = app.test_client()
    with testing.record(app) as seen:
        assert client.post("/accounts").get_json() == {"accounts": [1, 2]}
        assert client.post("/deposits", json={"account": 1, "amount": 5}).get_json() == {"balance": 5}
        assert client.get("/accounts/1").get_json() == {"balance": 5}
        assert client.post("/deposits", json={"account": 9, "amount": 5}).status_code == 404

    assert seen.codes == []
    assert seen.began == ["POST /accounts", "POST /deposits", "GET /accounts/<int:number>", "POST /deposits"]
    assert seen.rolled_back == ["POST /deposits"]


def test_what_failed_by_itself_leaves_the_rest(app: Flask) -> None:
    """The account that was added before the tag is there both times."""
    client = app.test_client()

    assert client.post("/tags/new").get_json() == {"is_new": True}
    assert client.post("/tags/new").get_json() == {"is_new": False}
    assert client.get("/accounts/2").get_json() == {"balance": 1}


def test_mail_goes_out_after_the_commit_alone(app: Flask, names: dict[str, Any]) -> None:
    """Not for what was refused."""
    client = app.test_client()
    client.post("/accounts")
    client.post("/deposits", json={"account": 1, "amount": 5})

    assert client.post("/withdrawals", json={"account": 1, "amount": 9}).status_code == 422
    assert names["sent"] == []
    assert client.post("/withdrawals", json={"account": 1, "amount": 4}).get_json() == {"balance": 1}
    assert names["sent"] == ["1 are left."]


def test_the_last_step_finds_the_same_books(app: Flask, names: dict[str, Any]) -> None:
    """With sessions and engines of its own."""
    app.test_client().post("/accounts")

    assert names["new_app"].test_client().get("/accounts").get_json() == {"balances": [0, 0]}

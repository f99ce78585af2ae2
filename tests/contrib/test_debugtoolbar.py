"""The panel of Flask-DebugToolbar: what is drawn and listed, and what never gets into the page."""

import gzip
import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
import sqlalchemy as sa
from flask import Flask, Response, render_template_string
from flask_debugtoolbar import DebugToolbarExtension

from flask_uow import UnitOfWork, transactional
from flask_uow._timeline import Breach, Lane, Rendering, Sent, Span, Timeline, UnitSpan
from flask_uow.contrib import debugtoolbar
from flask_uow.contrib._listing import rows
from flask_uow.contrib._picture import in_rows, picture, savepoints, ticks
from flask_uow.contrib._words import milliseconds, short_statement, statement_line
from flask_uow.exceptions import RuleViolationError, RuleWarning
from tests.databases import Database
from tests.models import Item, make_app

PANEL = "flask_uow.contrib.debugtoolbar.UnitOfWorkPanel"
PAGE = "<!doctype html><html><body>the page</body></html>"
SVG = "{http://www.w3.org/2000/svg}"

MakeApp = Callable[..., Flask]


@pytest.fixture
def make_debugged(database: Database, uow: UnitOfWork) -> MakeApp:
    """A function that makes an app with the toolbar, and nothing but the panel in it."""

    def make(*, has_units: bool = True, **config: object) -> Flask:
        app = Flask(__name__)
        if has_units:
            app = make_app(database, uow, **config)
        app.debug = bool(config.get("DEBUG", True))
        app.config.update(SECRET_KEY="tests", DEBUG_TB_PANELS=[PANEL], DEBUG_TB_ENABLED=True)
        DebugToolbarExtension(app)
        return app

    return make


def page_of(app: Flask, view: Callable[[], str | None]) -> str:
    app.add_url_rule("/", view_func=lambda: view() or PAGE)
    return app.test_client().get("/").text


def drawn(page: str) -> ElementTree.Element:
    """Return the page's picture; whatever is in it, it is well-formed."""
    found = re.search(r'<svg [^>]*class="uow-timeline".*</svg>', page, re.DOTALL)
    assert found, page
    return ElementTree.fromstring(found[0])


def classes(svg: ElementTree.Element) -> set[str]:
    return {name for element in svg.iter() for name in (element.get("class") or "").split()}


def words(svg: ElementTree.Element) -> set[str]:
    return {" ".join("".join(element.itertext()).split()) for element in svg.iter(f"{SVG}title")}


# ---- the page


def test_everything_that_a_request_did_is_drawn(make_debugged: MakeApp, uow: UnitOfWork) -> None:
    """Units, the connection, BEGIN, statements, idle stretches, savepoints, COMMIT and ROLLBACK, templates."""

    @transactional(label="the unit")
    def work() -> None:
        add(uow, "outer")
        with transactional(label="the savepoint"):
            add(uow, "inner")

    def view() -> str:
        work()
        with pytest.raises(ZeroDivisionError), transactional(label="undone"):
            add(uow, "undone")
            raise ZeroDivisionError
        with transactional(read_only=True, label="the reader"):
            pass
        return render_template_string(PAGE)

    page = page_of(make_debugged(), view)
    svg = drawn(page)

    wanted = {"unit", "undone", "held", "transaction", "idle", "statement", "savepoint", "bracket", "commit"}
    assert wanted | {"rollback", "template", "tick"} <= classes(svg)
    assert {"begin", "mark"} & classes(svg)
    assert any(title.startswith("savepoint of the savepoint: released after") for title in words(svg))
    assert any(title.startswith("INSERT INTO item (name) VALUES") for title in words(svg))
    assert any(title.startswith("the unit: committed, ") for title in words(svg))
    assert "the reader, read-only: committed" in page
    assert re.search(r"3 units, \d+ trips, \d\S* ms", page)
    assert "uow-content" not in page
    assert "uow-subtitle" not in page


def test_a_violation_is_drawn_where_it_happened_and_listed_with_its_fix(
    make_debugged: MakeApp, uow: UnitOfWork
) -> None:
    """Its code, its line, and what to do."""

    def view() -> None:
        with transactional(label="the unit") as unit, pytest.raises(RuleViolationError, match="UOW101"):
            unit.session.commit()

    page = page_of(make_debugged(), view)

    assert "breach" in classes(drawn(page))
    (title,) = [title for title in words(drawn(page)) if title.startswith("[UOW101]")]
    assert "test_debugtoolbar.py" in title
    assert "Delete the commit" in title
    listed = page[page.index('<ul class="uow-violations">') :]
    assert "<b>UOW101</b>" in listed
    assert re.search(r"<dt>where</dt><dd>\S+test_debugtoolbar\.py:\d+ in ", listed)
    assert "<dt>fix</dt><dd>Delete the commit" in listed
    assert "1 violation" in page


def test_what_is_noticed_after_a_response_is_shown_with_the_next(make_debugged: MakeApp, uow: UnitOfWork) -> None:
    """Lost writes are found when the context ends; that page is gone by then."""
    app = make_debugged()
    app.add_url_rule("/", view_func=lambda: PAGE)

    @app.get("/lose")
    def lose() -> str:
        add(uow, "lost")
        return PAGE

    client = app.test_client()
    with pytest.warns(RuleWarning, match="UOW103"):
        first = client.get("/lose").text
    second, third = (client.get("/").text for _ in range(2))

    assert ["UOW103" in page for page in (first, second, third)] == [False, True, False]
    assert "Noticed after an earlier response" in second


def test_a_request_that_is_a_unit(make_debugged: MakeApp, uow: UnitOfWork) -> None:
    """The toolbar writes its page before COMMIT; the picture has it all the same."""
    page = page_of(make_debugged(UOW_ATOMIC_REQUESTS=True), lambda: add(uow, "item"))

    assert "commit" in classes(drawn(page))
    assert any(title.endswith("committed, ") or ": committed, " in title for title in words(drawn(page)))


def test_the_toolbar_may_come_first(database: Database, uow: UnitOfWork) -> None:
    """The order of ``init_app`` is the app's to choose."""
    app = Flask(__name__)
    app.debug = True
    app.config.update(SECRET_KEY="tests", DEBUG_TB_PANELS=[PANEL], SQLALCHEMY_DATABASE_URI=database.url)
    DebugToolbarExtension(app)
    uow.init_app(app)

    def view() -> None:
        with transactional():
            uow.session.execute(sa.text("SELECT 1"))

    assert "statement" in classes(drawn(page_of(app, view)))


def test_a_page_that_travels_zipped(make_debugged: MakeApp, uow: UnitOfWork) -> None:
    """The toolbar unpacks it to write into it, and so does the panel."""

    def view() -> Response:
        add(uow, "item")
        uow.session.rollback()
        return Response(gzip.compress(PAGE.encode()), headers={"Content-Encoding": "gzip"}, mimetype="text/html")

    app = make_debugged()
    app.add_url_rule("/", view_func=view)
    response = app.test_client().get("/")

    assert "rollback" in classes(drawn(gzip.decompress(response.data).decode()))
    assert response.content_length == len(response.data)


def test_the_length_of_the_page_is_right(make_debugged: MakeApp, uow: UnitOfWork) -> None:
    """The header counts what is sent."""
    app = make_debugged()
    app.add_url_rule("/", view_func=lambda: PAGE)
    response = app.test_client().get("/")

    assert response.content_length == len(response.data)


# ---- what never gets into the page


def test_markup_in_labels_and_statements_is_text(make_debugged: MakeApp, uow: UnitOfWork) -> None:
    """Whatever a unit is called or a statement says, no element comes of it."""
    evil = "</title></svg><script>alert(1)</script>"

    @transactional(label=evil)
    def view() -> str:
        uow.session.execute(sa.text(f'SELECT 1 AS "{evil}"'))
        with transactional(label=f"{evil} inside"):
            uow.session.execute(sa.text("SELECT 1"))
        return render_template_string(PAGE)

    page = page_of(make_debugged(), view)

    assert "<script>alert" not in page
    assert evil in {"".join(text.itertext()) for text in drawn(page).iter(f"{SVG}text")} | {
        title.partition(": committed")[0] for title in words(drawn(page))
    }


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("odd", ["\udce9", "\x1b[31m", "\0", "\ufffe"], ids=ascii)
def test_what_no_page_can_hold_is_left_out_of_a_label(make_debugged: MakeApp, uow: UnitOfWork, odd: str) -> None:
    """A label may have the name of a file in it, which may be anything."""

    @transactional(label=f"import of caf{odd}.csv")
    def view() -> None:
        uow.session.execute(sa.text("SELECT 1"))

    svg = drawn(page_of(make_debugged(), view))

    shown = f"import of caf?{'[31m' * (odd[0] == chr(27))}.csv"
    assert any(title.startswith(f"{shown}: committed") for title in words(svg))


def test_values_are_not_shown(make_debugged: MakeApp, uow: UnitOfWork) -> None:
    """Neither parameters nor literals, nor those of a statement that was refused."""

    def view() -> None:
        with pytest.raises(RuleViolationError, match="UOW111"), transactional(read_only=True):
            uow.session.execute(sa.text("SELECT 'secret one', :two"), {"two": "secret two"})
            uow.session.execute(sa.text("DELETE FROM item WHERE name = 'secret three'"))

    page = page_of(make_debugged(), view)

    assert "UOW111" in page
    assert "DELETE FROM item WHERE name = " in page
    assert "secret" not in page


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_nothing_is_recorded_but_in_debug(make_debugged: MakeApp, uow: UnitOfWork) -> None:
    """Even where the toolbar is switched on all the same."""
    app = make_debugged(DEBUG=False)

    @transactional
    def view() -> None:
        add(uow, "item")

    page = page_of(app, view)

    assert "Nothing was recorded" in page
    assert "nothing recorded" in page
    with app.app_context():
        assert not hasattr(uow.engine.dialect, "_uow_watched")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_an_app_without_units(make_debugged: MakeApp) -> None:
    """The panel says what is missing."""
    assert "call UnitOfWork(app)" in page_of(make_debugged(has_units=False), lambda: None)


# ---- the picture


def test_a_picture_of_its_own() -> None:
    """A file of its own has its size and its colours in it, for light and dark, and fetches nothing."""
    svg = picture(a_timeline(), is_standalone=True)

    root = ElementTree.fromstring(svg)
    assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"
    assert "prefers-color-scheme:dark" in svg
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", svg)


@pytest.mark.parametrize(("trips", "words_of_it"), [(1, "BEGIN rode in front of it"), (2, "BEGIN went ahead of it")])
def test_how_a_transaction_began(trips: int, words_of_it: str) -> None:
    """BEGIN is a part of its statement, whether it took a round trip of its own or not."""
    timeline = a_timeline()
    timeline.lanes[0].spans[0].trips = trips

    (title,) = [each for each in words(ElementTree.fromstring(picture(timeline))) if each.startswith("SELECT")]
    assert words_of_it in title
    assert [row.trips for row in rows(timeline) if row.text == "BEGIN; SELECT '?'"] == [trips]


def test_a_savepoint_that_waits_for_the_next_statement() -> None:
    """It is drawn as any other."""
    timeline = a_timeline()
    timeline.lanes[0].spans[1].trips = 0

    said = words(ElementTree.fromstring(picture(timeline)))
    assert any("SAVEPOINT a" in title and "it took no round trip of its own" in title for title in said)
    assert [row.trips for row in rows(timeline) if row.text == "SAVEPOINT a"] == [0]


def test_what_is_short_can_be_seen() -> None:
    """A statement of a microsecond in a request of a minute has a line around it."""
    timeline = a_timeline(length=60.0)
    statement = next(each for each in ElementTree.fromstring(picture(timeline)).iter() if _is(each, "statement"))

    (rect,) = [each for each in statement if each.tag == f"{SVG}rect"]
    assert float((rect.get("width") or "").rstrip("%")) < 0.01
    assert ".sent rect{stroke-width:1.5}" in picture(timeline, is_standalone=True)


def test_everything_lies_within_the_picture() -> None:
    """From left to right, and from top to bottom."""
    timeline = a_timeline()
    timeline.lanes[0].holds.append((-1.0, 100.0))
    root = ElementTree.fromstring(picture(timeline))
    height = float(root.get("height") or 0)

    for rect in root.iter(f"{SVG}rect"):
        left, width = (float((rect.get(name) or "0").rstrip("%")) for name in ("x", "width"))
        assert 0 <= left <= left + width <= 100
        assert 0 <= float(rect.get("y") or 0) <= float(rect.get("y") or 0) + float(rect.get("height") or 0) <= height


@pytest.mark.parametrize(("neighbour", "is_labelled"), [(0.9, True), (0.1, False)], ids=["far", "near"])
def test_a_label_stands_beside_its_unit_where_there_is_room(neighbour: float, is_labelled: bool) -> None:
    """Not where the next unit would be covered."""
    units = [UnitSpan("too long for it", 1, 1, False, 0.0, 0.01), UnitSpan("", 1, 1, False, neighbour, 1.0)]
    root = ElementTree.fromstring(picture(Timeline("GET /", start=0.0, end=1.0, units=units)))

    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]

    assert ("too long for it" in texts) is is_labelled


def test_bars_come_in_the_order_of_what_they_stand_for() -> None:
    """As they are read aloud, or stepped through."""
    units = [UnitSpan(name, 1, 1, False, start, start + 0.1) for name, start in (("first", 0.1), ("second", 0.5))]
    root = ElementTree.fromstring(picture(Timeline("GET /", start=0.0, end=1.0, units=units)))

    names = ["".join(title.itertext()).partition(":")[0] for title in root.iter(f"{SVG}title")]

    assert [name for name in names if name in ("first", "second")] == ["first", "second"]


@pytest.mark.parametrize(
    ("length", "last"),
    [(0.012, 0.012), (0.0101, 0.01), (1.0, 1.0), (75.0, 70.0)],
    ids=["12 ms", "10.1 ms", "1 s", "75 s"],
)
def test_the_axis_has_round_moments(length: float, last: float) -> None:
    """At most nine of them, from 0."""
    moments = ticks(length)

    assert moments[0] == 0
    assert 4 <= len(moments) <= 9
    assert moments[-1] == pytest.approx(last)


def test_units_lie_below_those_around_them() -> None:
    """One after another in one row, one inside another below it."""
    outer, first, second = (unit(*stretch) for stretch in ((0, 10), (1, 3), (4, 6)))
    later = unit(11, 12)

    assert [row for _, row in in_rows([outer, first, second, later])] == [0, 1, 1, 0]


class _Moment(float):
    """A time that counts how often any of its kind is compared."""

    compared = 0

    def __lt__(self, other: float) -> bool:
        _Moment.compared += 1
        return float(self) < float(other)

    def __gt__(self, other: float) -> bool:
        _Moment.compared += 1
        return float(self) > float(other)

    def __ge__(self, other: float) -> bool:
        _Moment.compared += 1
        return float(self) >= float(other)


def test_a_long_timeline_takes_as_long_as_it_has_steps() -> None:
    """A view that works through a list, a unit, a savepoint and a template for each of its lines."""

    def compared(units: int) -> int:
        lane = Lane("default")
        timeline = Timeline("POST /import", _Moment(0), _Moment(10 * units), lanes=[lane])
        for number in range(units):
            moments = [_Moment(10 * number + step) for step in range(10)]
            texts = ["SAVEPOINT a", "RELEASE SAVEPOINT a", "COMMIT"]
            lane.spans += [
                Span(
                    Sent.COMMIT if text == "COMMIT" else Sent.SAVEPOINT,
                    moments[2 * place + 1],
                    moments[2 * place + 2],
                    text,
                    is_in_transaction=text != "COMMIT",
                )
                for place, text in enumerate(texts)
            ]
            lane.holds.append((moments[0], moments[7]))
            timeline.units.append(UnitSpan("a line", 1, 1, False, moments[0], moments[7]))
            timeline.renderings.append(Rendering("line.html", moments[8], moments[9]))
        _Moment.compared = 0
        assert debugtoolbar.page(timeline, []).count("a line") > units
        return _Moment.compared

    assert compared(400) < 2.5 * compared(200)


def test_savepoints_inside_each_other() -> None:
    """Each ends with its own statement, and those that are left with the transaction."""
    texts = ["SAVEPOINT a", "SAVEPOINT b", "RELEASE SAVEPOINT b", "SAVEPOINT c", "ROLLBACK TO SAVEPOINT c", "COMMIT"]
    spans = [
        Span(
            Sent.COMMIT if text == "COMMIT" else Sent.SAVEPOINT,
            number,
            number + 0.5,
            text,
            is_in_transaction=text != "COMMIT",
        )
        for number, text in enumerate(texts)
    ]

    found = {each.label: each for each in savepoints(Lane("default", spans=spans), 9.0)}

    assert {name: (each.start, each.end, each.depth, each.is_undone) for name, each in found.items()} == {
        "b": (1, 2.5, 1, False),
        "c": (3, 4.5, 1, True),
        "a": (0, 5.5, 0, False),
    }


@pytest.mark.parametrize(("end", "is_undone"), [(Sent.COMMIT, False), (Sent.ROLLBACK, True)])
def test_savepoints_inside_each_other_that_end_with_their_transaction(end: Sent, is_undone: bool) -> None:
    """Each lies as deep as while it was open."""
    spans = [
        Span(Sent.SAVEPOINT, 0.0, 0.5, "SAVEPOINT a", is_in_transaction=True),
        Span(Sent.SAVEPOINT, 1.0, 1.5, "SAVEPOINT b", is_in_transaction=True),
        Span(end, 2.0, 2.5, end.upper()),
    ]

    found = [
        (each.label, each.depth, each.end, each.is_undone) for each in savepoints(Lane("default", spans=spans), 9.0)
    ]

    assert sorted(found) == [("a", 0, 2.5, is_undone), ("b", 1, 2.5, is_undone)]


def test_a_savepoint_that_nobody_ends() -> None:
    """It goes on until the response is ready, and is not kept."""
    lane = Lane("default", spans=[Span(Sent.SAVEPOINT, 1.0, 1.5, "SAVEPOINT a", is_in_transaction=True)])

    (left,) = savepoints(lane, 9.0)

    assert (left.start, left.end, left.is_undone) == (1.0, 9.0, True)


# ---- its words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 ms"), (0.00012, "0.12 ms"), (0.0123, "12.3 ms"), (1.25, "1250 ms")],
    ids=str,
)
def test_times(seconds: float, text: str) -> None:
    """As many digits as say something."""
    assert milliseconds(seconds) == text


@pytest.mark.parametrize(
    ("statement", "line", "short"),
    [
        ("SELECT a,\n b\nFROM item\nWHERE c = 'x\ny'", "SELECT a, b FROM item WHERE c = '?'", "SELECT item"),
        ("-- it's\nDELETE FROM item WHERE a = 'secret'", "DELETE FROM item WHERE a = '?'", "DELETE item"),
        ("update /* a 'b */ item set c = $$secret$$", "update item set c = '?'", "UPDATE item"),
        ("COMMIT", "COMMIT", "COMMIT"),
        ("INSERT INTO item VALUES ('secret", "INSERT INTO item VALUES ('?'", "INSERT item"),
        ("", "", ""),
    ],
)
def test_statements(statement: str, line: str, short: str) -> None:
    """On one line, and without the literals, whatever lies between."""
    assert statement_line(statement) == line
    assert short_statement(statement) == short


def a_timeline(length: float = 0.01) -> Timeline:
    """Return one in which everything happens at the beginning."""
    spans = [
        Span(Sent.STATEMENT, 0.001, 0.001001, "SELECT 1", begins=True, is_in_transaction=True),
        Span(Sent.SAVEPOINT, 0.002, 0.0021, "SAVEPOINT a", is_in_transaction=True),
        Span(Sent.SAVEPOINT, 0.003, 0.0031, "RELEASE SAVEPOINT a", is_in_transaction=True),
        Span(Sent.COMMIT, 0.004, 0.005, "COMMIT"),
    ]
    return Timeline(
        "GET /",
        start=0.0,
        end=length,
        lanes=[Lane("default", spans=spans, holds=[(0.0005, 0.006)])],
        units=[unit(0.0, 0.005), unit(0.0015, 0.0035)],
        breaches=[Breach("UOW109", 0.004, "It sat idle.", "app.py:1 in view", "Do less.")],
    )


def unit(start: float, end: float) -> UnitSpan:
    return UnitSpan("unit", 1, 1, False, start, end, "committed")


def add(uow: UnitOfWork, name: str) -> None:
    uow.session.add(Item(name=name))
    uow.session.flush()


def _is(element: ElementTree.Element, name: str) -> bool:
    return name in (element.get("class") or "").split()

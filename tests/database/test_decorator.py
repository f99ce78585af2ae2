"""``@transactional`` on everything that may carry it."""

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import flask.views
import pytest
from flask import g

from flask_uow import UnitOfWork, current_unit, transactional
from flask_uow.exceptions import ConfigurationError, UnitOptionsError
from tests.database.conftest import Bench, MakeBench
from tests.databases import Database
from tests.models import Item, make_app

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


@pytest.mark.parametrize("decorate", [transactional, transactional()], ids=["bare", "with parentheses"])
def test_a_view(bench: Bench, decorate: Decorator) -> None:
    """Its label is method and rule."""

    @bench.app.post("/items/<name>")
    @decorate
    def create(name: str) -> str:
        bench.add(name)
        return current_unit.label

    assert bench.app.test_client().post("/items/a").text == "POST /items/<name>"
    assert bench.committed() == ["a"]


def test_a_view_under_other_decorators(bench: Bench) -> None:
    """It is still the view, whatever wraps it."""
    from functools import wraps

    def other(function: Callable[..., str]) -> Callable[..., str]:
        @wraps(function)
        def wrapper(*args: str, **kwargs: str) -> str:
            return function(*args, **kwargs)

        return wrapper

    @bench.app.get("/")
    @other
    @transactional
    def view() -> str:
        return current_unit.label

    assert bench.app.test_client().get("/").text == "GET /"


def test_a_method_view(bench: Bench) -> None:
    """A method of it."""

    class Items(flask.views.MethodView):
        @transactional
        def post(self) -> str:
            bench.add("a")
            return current_unit.label

    bench.app.add_url_rule("/items", view_func=Items.as_view("items"))

    assert bench.app.test_client().post("/items").text == "POST /items"
    assert bench.committed() == ["a"]


def test_the_decorators_of_a_view_class(bench: Bench) -> None:
    """All of its methods."""

    class Items(flask.views.MethodView):
        decorators = [transactional]  # noqa: RUF012  # as Flask declares it

        def post(self) -> str:
            bench.add("a")
            return current_unit.label

    bench.app.add_url_rule("/items", view_func=Items.as_view("items"))

    assert bench.app.test_client().post("/items").text == "POST /items"
    assert bench.committed() == ["a"]


def test_an_async_view(bench: Bench) -> None:
    """It uses the session of the request, and commits when it has been awaited."""
    with bench.app.app_context(), transactional():
        bench.add("user")

    @bench.app.before_request
    def load_user() -> None:
        g.user = bench.session.query(Item).one()

    @bench.app.post("/")
    @transactional
    async def view() -> str:
        await asyncio.sleep(0)
        g.user.name = "renamed"
        return current_unit.label

    for _ in range(3):
        assert bench.app.test_client().post("/").text == "POST /"
    assert bench.committed() == ["renamed"]


def test_an_async_view_that_fails(bench: Bench) -> None:
    """It rolls back."""

    @bench.app.post("/")
    @transactional
    async def view() -> str:
        bench.add("lost")
        await asyncio.sleep(0)
        raise KeyError

    with pytest.raises(KeyError):
        bench.app.test_client().post("/")
    assert bench.committed() == []


def test_a_coroutine_function_stays_one(bench: Bench) -> None:
    """It can be awaited, and its unit ends when it does."""

    @transactional
    async def write() -> str:
        bench.add("a")
        await asyncio.sleep(0)
        return current_unit.label

    assert inspect.iscoroutinefunction(write)
    with bench.app.app_context():
        assert asyncio.run(write()).endswith("write")
    assert bench.committed() == ["a"]


def test_a_command(bench: Bench) -> None:
    """Of ``flask``."""

    @bench.app.cli.command("write")
    @transactional
    def write() -> None:
        bench.add("a")

    result = bench.app.test_cli_runner().invoke(args=["write"])

    assert result.exit_code == 0, result.output
    assert bench.committed() == ["a"]


@pytest.mark.parametrize(("stop", "code"), [(ValueError, 1), (SystemExit(3), 3)], ids=str)
def test_a_command_that_fails(bench: Bench, stop: BaseException, code: int) -> None:
    """It rolls back, and its exit status stands."""

    @bench.app.cli.command("write")
    @transactional
    def write() -> None:
        bench.add("lost")
        raise stop

    assert bench.app.test_cli_runner().invoke(args=["write"]).exit_code == code
    assert bench.committed() == []


def test_functions_and_methods(bench: Bench) -> None:
    """Plain, static, class; the decorator above or below ``staticmethod``."""

    class Service:
        @transactional
        def plain(self, name: str) -> str:
            bench.add(name)
            return name

        @staticmethod
        @transactional
        def static(name: str) -> str:
            bench.add(name)
            return name

        @classmethod
        @transactional
        def of_class(cls, name: str) -> str:
            bench.add(name)
            return cls.__name__

        @transactional
        @staticmethod
        def above(name: str) -> str:
            bench.add(name)
            return name

    with bench.app.app_context():
        assert Service().plain("a") == "a"
        assert Service.static("b") == "b"
        assert Service.of_class("c") == "Service"
        assert Service.above("d") == "d"

    assert bench.committed() == ["a", "b", "c", "d"]


def test_name_and_docstring_are_kept() -> None:
    """For ``url_for`` and for people."""

    @transactional
    def transfer() -> None:
        """Move money."""

    assert transfer.__name__ == "transfer"
    assert transfer.__doc__ == "Move money."


def test_the_labels_of_functions_and_blocks(bench: Bench) -> None:
    """The qualified name, the enclosing function's, or the one that was given."""

    @transactional
    def named() -> str:
        return current_unit.label

    with bench.app.app_context():
        assert named() == named.__qualname__
        with transactional() as unit:
            assert unit.label == "test_the_labels_of_functions_and_blocks"
        with transactional(label="night job") as unit:
            assert unit.label == "night job"
        with ExitStack() as stack:
            unit = stack.enter_context(transactional())
            assert unit.label == "test_the_labels_of_functions_and_blocks"
            assert "test_decorator.py" in str(unit.where)


def test_a_function_called_by_a_view_has_its_own_label(bench: Bench) -> None:
    """Only the view is the request."""

    @transactional
    def service() -> str:
        return current_unit.label

    @bench.app.get("/")
    @transactional
    def view() -> str:
        return service()

    assert bench.app.test_client().get("/").text.endswith("service")


def numbers() -> Iterator[int]:
    yield 1


async def async_numbers() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize("function", [numbers, async_numbers], ids=lambda function: function.__name__)
@pytest.mark.parametrize("decorate", [transactional, transactional()], ids=["bare", "with parentheses"])
def test_a_generator_function_is_refused_at_decoration(function: Callable[..., object], decorate: Decorator) -> None:
    """Its body would run after the unit has ended."""
    with pytest.raises(TypeError, match=f"generator function '{function.__name__}'"):
        decorate(function)


class Adder:
    """An object that is called as a function."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def __call__(self, name: str) -> str:
        self.bench.add(name)
        return f"{current_unit.label} at {current_unit.where}"


class AsyncAdder(Adder):
    """An object that is called as a coroutine function."""

    async def __call__(self, name: str) -> str:  # type: ignore[override]
        await asyncio.sleep(0)
        return super().__call__(name)


class Numbers:
    """An object that is called as a generator function."""

    def __call__(self) -> Iterator[int]:
        yield 1


@pytest.mark.parametrize("kind", ["object", "partial", "async object", "async partial", "async object with a name"])
def test_what_is_called_as_a_function_has_its_name_and_line(bench: Bench, kind: str) -> None:
    """A partial, and an object: its unit is not called after our own functions, and lies around what is awaited."""
    adder: Any = AsyncAdder(bench) if "async" in kind else Adder(bench)
    name = f"{type(adder).__name__}.__call__"
    called: Callable[[], Any]
    if "partial" in kind:
        called = transactional(functools.partial(adder, "a"))
    elif "with a name" in kind:
        called = functools.partial(transactional(functools.update_wrapper(adder, Adder.__call__)), "a")
        name = "Adder.__call__"
    else:
        called = functools.partial(transactional(adder), "a")

    with bench.app.app_context():
        told = asyncio.run(called()) if "async" in kind else called()

    assert told.startswith(f"{name} at ")
    assert told.endswith(f" in {name}")
    assert bench.committed() == ["a"]


@pytest.mark.parametrize("function", [Numbers(), functools.partial(numbers)], ids=["object", "partial"])
def test_what_is_called_as_a_generator_function_is_refused_too(function: Callable[..., object]) -> None:
    """By the name of what would run."""
    with pytest.raises(TypeError, match=r"generator function '(numbers|Numbers\.__call__)'"):
        transactional(function)


def test_what_is_no_function_is_refused() -> None:
    """A class, or an option that was meant to be a keyword."""
    with pytest.raises(TypeError, match="decorates functions"):
        transactional(Item)
    with pytest.raises(TypeError, match="decorates functions"):
        transactional("required")  # type: ignore[call-overload]


def test_an_unknown_option_is_refused_at_decoration() -> None:
    """With its name."""
    with pytest.raises((TypeError, UnitOptionsError), match="isolaton"):
        transactional(isolaton="serializable")  # type: ignore[call-overload]


@pytest.mark.parametrize("is_inside", [False, True], ids=["of a unit", "in a unit"])
def test_a_partial_is_a_view_as_any_other(make_bench: MakeBench, is_inside: bool) -> None:
    """Its unit has the rule's name, and the configured veto is for it, whichever of the two is around the other."""
    bench = make_bench(UOW_ROLLBACK_ON_STATUS=400)
    labels = []

    def view(name: str, status: int) -> tuple[str, int]:
        labels.append(current_unit.label)
        bench.add(name)
        return "", status

    part = transactional(functools.partial(view, "row")) if is_inside else functools.partial(transactional(view), "row")
    bench.app.add_url_rule("/<int:status>", "part", part)
    client = bench.app.test_client()

    for status in (404, 200):
        assert client.get(f"/{status}").status_code == status

    assert labels == ["GET /<int:status>"] * 2
    assert bench.committed() == ["row"]


def test_an_object_is_a_view_as_any_other(make_bench: MakeBench) -> None:
    """Its class has decorated how it is called: the unit has the rule's name, and the configured veto is for it."""
    bench = make_bench(UOW_ROLLBACK_ON_STATUS=400)
    labels = []

    class Teller:
        @transactional
        def __call__(self, status: int) -> tuple[str, int]:
            labels.append(current_unit.label)
            bench.add("row")
            return "", status

    bench.app.add_url_rule("/<int:status>", "teller", Teller())
    client = bench.app.test_client()

    for status in (404, 200):
        assert client.get(f"/{status}").status_code == status

    assert labels == ["GET /<int:status>"] * 2
    assert bench.committed() == ["row"]


@pytest.mark.parametrize("option", ["retries", "on_error", "rollback_on_status"])
def test_what_a_block_cannot_do_is_refused_at_its_line(bench: Bench, option: str) -> None:
    """Also where a stack enters it."""
    block = transactional(**{option: repr if option == "on_error" else 400})  # type: ignore[call-overload]

    with bench.app.app_context(), ExitStack() as stack:
        with pytest.raises(UnitOptionsError, match=f"{option} was given to a with block") as by_with, block:
            pass
        with pytest.raises(UnitOptionsError, match=f"{option} was given to a with block") as by_stack:
            stack.enter_context(block)

    for caught in (by_with, by_stack):
        assert " in test_what_a_block_cannot_do" in str(caught.value.where)


def test_the_bound_decorator_serves_its_extension_only(database: Database) -> None:
    """``uow.transactional`` in another app's context is an error, not a unit on the wrong database."""
    uow, other = UnitOfWork(), UnitOfWork()
    app = make_app(database, uow)
    other_app = make_app(database, other)

    @uow.transactional
    def write() -> None:
        uow.session.add(Item(name="a"))

    with app.app_context():
        write()
        with uow.transactional(label="block") as unit:
            assert unit.label == "block"
    with other_app.app_context(), pytest.raises(ConfigurationError, match="not served by this UnitOfWork"):
        write()

    assert database.rows("SELECT name FROM item") == [("a",)]


def test_the_current_unit_is_false_where_there_is_none(bench: Bench) -> None:
    """Outside a context, in one, and after a unit."""
    assert not current_unit
    with bench.app.app_context():
        assert not current_unit
        with transactional() as unit:
            assert current_unit
            assert current_unit == unit
        assert not current_unit
        with pytest.raises(RuntimeError, match="No unit of work is active"):
            current_unit.after_commit(print)


def test_two_tasks_that_interleave_their_units(bench: Bench) -> None:
    """The second is refused before it did anything (UOW203); the first commits, and nothing is lost in silence."""

    @transactional
    async def write(name: str) -> None:
        bench.add(name)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    @bench.app.post("/")
    async def view() -> list[str]:
        results = await asyncio.gather(write("first"), write("second"), return_exceptions=True)
        return [type(result).__name__ for result in results]

    answers = bench.app.test_client().post("/").get_json()

    assert answers == ["NoneType", "RuleViolationError"]
    assert bench.committed() == ["first"]


def test_a_task_inside_a_unit_may_nest_its_own(bench: Bench) -> None:
    """One that is awaited before the next begins; two at once get UOW203."""

    @transactional
    async def write(name: str) -> None:
        bench.add(name)
        await asyncio.sleep(0)

    @bench.app.post("/")
    @transactional
    async def view() -> list[str]:
        await asyncio.wait_for(write("first"), 5)
        await asyncio.create_task(write("second"))
        results = await asyncio.gather(write("third"), write("fourth"), return_exceptions=True)
        return [getattr(result, "code", "fine") for result in results]

    assert bench.app.test_client().post("/").get_json() == ["fine", "UOW203"]
    assert bench.committed() == ["first", "second", "third"]

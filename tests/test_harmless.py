"""Which statements are known to need no transaction, and that they need none."""

import datetime
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql.base import PGCompiler
from sqlalchemy.engine import ExecutionContext
from sqlalchemy.engine.interfaces import Compiled
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import (
    DeclarativeBase,
    Session,
    aliased,
    column_property,
    contains_eager,
    defer,
    joinedload,
    lazyload,
    query_expression,
    relationship,
    selectinload,
    subqueryload,
    with_expression,
    with_loader_criteria,
)
from sqlalchemy.sql import functions, quoted_name
from sqlalchemy.sql.expression import ColumnElement
from sqlalchemy.types import TypeDecorator, UserDefinedType

from flask_uow._harmless import KNOWN_FUNCTIONS, _Look, is_harmless, is_harmless_read
from tests.databases import PostgreSQLDatabase

POSTGRESQL = postgresql.psycopg2.dialect()  # type: ignore[no-untyped-call]
IS_21 = hasattr(sa, "FrameClause")

Number = ColumnElement[Any]
Statement = sa.Executable
MakeStatement = Callable[[Number], Statement]


class Base(DeclarativeBase):
    """Of this file's models."""


class Author(Base):
    """Has books, a subclass in the same table, and an expression for a column."""

    __tablename__ = "author"

    id = sa.orm.mapped_column(sa.Integer, primary_key=True)
    name = sa.orm.mapped_column(sa.String)
    kind = sa.orm.mapped_column(sa.String)
    born = sa.orm.mapped_column(sa.Date)
    tags = sa.orm.mapped_column(postgresql.ARRAY(sa.Integer))
    facts = sa.orm.mapped_column(postgresql.JSONB)
    mood = sa.orm.mapped_column(sa.Enum("calm", "wild", name="mood"))
    shout = column_property(sa.func.upper(name))
    extra = query_expression(sa.literal(0))
    books = relationship("Book", back_populates="author")
    loved_books = relationship(
        "Book", primaryjoin="and_(Author.id == Book.author_id, func.abs(Book.price) > 3)", viewonly=True
    )
    odd_books = relationship(
        "Book", primaryjoin="and_(Author.id == Book.author_id, func.evil(Book.price) > 3)", viewonly=True
    )

    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "author"}  # noqa: RUF012


class Poet(Author):
    """In the table of its parent."""

    __mapper_args__ = {"polymorphic_identity": "poet"}  # noqa: RUF012


class Book(Base):
    """Belongs to an author."""

    __tablename__ = "book"

    id = sa.orm.mapped_column(sa.Integer, primary_key=True)
    author_id = sa.orm.mapped_column(sa.ForeignKey("author.id"))
    price = sa.orm.mapped_column(sa.Numeric)
    author = relationship(Author, back_populates="books")


class Odd(Base):
    """Calls the application's own function wherever it is selected as a whole."""

    __tablename__ = "book"
    __table_args__ = {"extend_existing": True}  # noqa: RUF012

    id = sa.orm.mapped_column(sa.Integer, primary_key=True)
    cost = column_property(sa.func.evil(id))


class OddKind(Base):
    """Tells its subclasses apart by the application's own function."""

    __tablename__ = "odd_kind"

    id = sa.orm.mapped_column(sa.Integer, primary_key=True)

    __mapper_args__ = {"polymorphic_on": sa.func.evil(id), "polymorphic_identity": 1}  # noqa: RUF012


class OddPoet(OddKind):
    """In the table of its parent."""

    __mapper_args__ = {"polymorphic_identity": 2}  # noqa: RUF012


AUTHOR, BOOK = Base.metadata.tables["author"], Base.metadata.tables["book"]
TREE = sa.table("book", sa.column("id", sa.Integer), sa.column("author_id", sa.Integer))
SEQUENCE = sa.Sequence("numbers")
BOOKS_OF = BOOK.alias("books_of")


def compiled(statement: Any, dialect: Any = POSTGRESQL) -> Compiled:
    made: Compiled = statement.compile(dialect=dialect)
    return made


# ---- every place where an expression may stand


def recursive(number: Number) -> Statement:
    tree = sa.select(TREE.c.id, number.label("n")).cte("tree", recursive=True)
    below = aliased(tree, name="below")
    tree = tree.union_all(sa.select(TREE.c.id, below.c.n).where(TREE.c.author_id == below.c.id, TREE.c.id > 100))
    return sa.select(tree)


def distinct_on(statement: sa.Select[Any], number: Number) -> Statement:
    return statement.ext(postgresql.distinct_on(number)) if IS_21 else statement.distinct(number)


PLACES: dict[str, MakeStatement] = {
    "column": lambda n: sa.select(AUTHOR.c.name, n),
    "label": lambda n: sa.select(n.label("n")),
    "where": lambda n: sa.select(AUTHOR.c.name).where(n > 1),
    "and": lambda n: sa.select(AUTHOR.c.name).where(sa.and_(AUTHOR.c.id > 0, sa.not_(n > 1))),
    "or": lambda n: sa.select(AUTHOR.c.name).where(sa.or_(AUTHOR.c.id > 0, n.is_(None))),
    "in": lambda n: sa.select(AUTHOR.c.name).where(n.in_([1, 2])),
    "in-expressions": lambda n: sa.select(AUTHOR.c.name).where(AUTHOR.c.id.in_([n, 7])),
    "not-in-select": lambda n: sa.select(AUTHOR.c.name).where(n.not_in(sa.select(BOOK.c.id))),
    "tuple": lambda n: sa.select(AUTHOR.c.name).where(sa.tuple_(AUTHOR.c.id, n).in_([(1, 1), (2, 2)])),
    "between": lambda n: sa.select(AUTHOR.c.name).where(AUTHOR.c.id.between(0, n)),
    "distinct-from": lambda n: sa.select(AUTHOR.c.name).where(AUTHOR.c.id.is_distinct_from(n)),
    "having": lambda n: sa.select(sa.func.count()).select_from(AUTHOR).group_by(AUTHOR.c.id).having(sa.func.max(n) > 0),
    "group-by": lambda n: sa.select(sa.func.count()).select_from(AUTHOR).group_by(n),
    "order-by": lambda n: sa.select(AUTHOR.c.name).order_by(n.desc().nulls_last(), AUTHOR.c.id),
    "order-by-label": lambda n: sa.select(AUTHOR.c.name, n.label("n")).order_by(sa.desc("n"), "name"),
    "distinct-on": lambda n: distinct_on(sa.select(AUTHOR.c.name).order_by(n), n),
    "limit": lambda n: sa.select(BOOK.c.id).order_by(BOOK.c.id).limit(sa.select(sa.func.max(n)).scalar_subquery()),
    "offset": lambda n: sa.select(BOOK.c.id).order_by(BOOK.c.id).offset(sa.select(sa.func.max(n)).scalar_subquery()),
    "fetch": lambda n: (
        sa.select(BOOK.c.id).order_by(BOOK.c.id).fetch(sa.select(sa.func.max(n)).scalar_subquery(), with_ties=True)
    ),
    "arithmetic": lambda n: sa.select(-n + 3 * (n - 1), n % 2, n // 3, n / 7),
    "text-operators": lambda n: sa.select(
        AUTHOR.c.name + sa.cast(n, sa.String), AUTHOR.c.name.ilike("A%", escape="/"), AUTHOR.c.name.startswith("A")
    ),
    "regexp": lambda n: sa.select(
        AUTHOR.c.name.regexp_match("^a", flags="i"), AUTHOR.c.name.regexp_replace("a", "b"), n
    ),
    "collate": lambda n: sa.select(sa.cast(n, sa.String).collate("C")),
    "function": lambda n: sa.select(sa.func.coalesce(sa.func.NULLIF(n, 1), sa.func.abs(n), 0)),
    "aggregate-filter": lambda n: sa.select(sa.func.count().filter(n > 1), sa.func.sum(AUTHOR.c.id).filter(n > 1)),
    "within-group": lambda n: sa.select(sa.func.percentile_cont(0.5).within_group(n)),
    "aggregate-order-by": lambda n: sa.select(
        sa.func.array_agg(postgresql.aggregate_order_by(AUTHOR.c.id, n.desc())), sa.func.count(AUTHOR.c.id.distinct())
    ),
    "over": lambda n: sa.select(sa.func.rank().over(partition_by=n, order_by=AUTHOR.c.id, rows=(None, 0)), AUTHOR.c.id),
    "over-order": lambda n: sa.select(sa.func.sum(AUTHOR.c.id).over(order_by=n, range_=(None, 2)), AUTHOR.c.id),
    "case-when": lambda n: sa.select(sa.case((n > 1, "much"), else_="little")),
    "case-then": lambda n: sa.select(sa.case((AUTHOR.c.id > 1, n), else_=0)),
    "case-else": lambda n: sa.select(sa.case((AUTHOR.c.id > 1, 0), else_=n)),
    "case-value": lambda n: sa.select(sa.case({1: "one", 2: "two"}, value=n)),
    "cast": lambda n: sa.select(sa.cast(n, sa.Numeric(10, 2)), sa.cast(n, sa.String(3))),
    "type-coerce": lambda n: sa.select(sa.type_coerce(n, sa.String)),
    "extract": lambda n: sa.select(sa.extract("year", AUTHOR.c.born) + n),
    "array": lambda n: sa.select(postgresql.array([AUTHOR.c.id, n])),
    "array-index": lambda n: sa.select(AUTHOR.c.tags[n], AUTHOR.c.tags[1:2]),
    "array-any": lambda n: sa.select(AUTHOR.c.id).where(n == sa.any_(AUTHOR.c.tags)),
    "array-operators": lambda n: sa.select(AUTHOR.c.tags.contains(postgresql.array([n])), AUTHOR.c.tags.overlap([2])),
    "any-of-select": lambda n: sa.select(AUTHOR.c.id).where(AUTHOR.c.id >= sa.all_(sa.select(n).scalar_subquery())),
    "json": lambda n: sa.select(AUTHOR.c.facts["a"].as_integer() + n, AUTHOR.c.facts["b"].astext),
    "json-operators": lambda n: sa.select(AUTHOR.c.facts.has_key("a"), AUTHOR.c.facts.contains({"a": 1}), n),
    "json-path": lambda n: sa.select(AUTHOR.c.facts[("b", "c")].astext, n),
    "scalar-subquery": lambda n: sa.select(sa.select(sa.func.max(n)).scalar_subquery()),
    "exists": lambda n: sa.select(AUTHOR.c.id).where(sa.exists().where(n == BOOK.c.id)),
    "exists-only": lambda n: sa.select(sa.exists(sa.select(BOOK.c.id).where(BOOK.c.id == n))),
    "subquery": lambda n: sa.select(sa.select(AUTHOR.c.id, n.label("n")).subquery().c.n),
    "subquery-unused": lambda n: sa.select(sa.select(AUTHOR.c.id, n.label("n")).subquery().c.id),
    "subquery-alias": lambda n: sa.select(sa.select(n.label("n")).subquery().alias().alias().c.n),
    "lateral": lambda n: sa.select(
        AUTHOR.c.id, sa.select(BOOK.c.id).where(BOOK.c.author_id == AUTHOR.c.id, n > 0).lateral("l").c.id
    ),
    "join": lambda n: sa.select(AUTHOR.c.name).join(BOOK, AUTHOR.c.id == n),
    "join-of-a-join": lambda n: sa.select(AUTHOR.c.name).select_from(
        AUTHOR.outerjoin(sa.join(BOOK, BOOKS_OF, BOOK.c.id == BOOKS_OF.c.id), n == BOOK.c.id, full=True)
    ),
    "select-from": lambda n: sa.select(sa.func.count()).select_from(sa.select(n).subquery()),
    "cte": lambda n: sa.select(sa.select(AUTHOR.c.id, n.label("n")).cte("c").c.id),
    "cte-of-a-cte": lambda n: sa.select(sa.select(sa.select(n.label("n")).cte("c").c.n).cte("d").alias("e")),
    "cte-added": lambda n: sa.select(AUTHOR.c.id).add_cte(sa.select(n.label("n")).cte("c")),
    "cte-of-a-union": lambda n: sa.union(sa.select(AUTHOR.c.id), sa.select(BOOK.c.id)).add_cte(sa.select(n).cte("c")),
    "cte-nested": lambda n: sa.select(sa.select(sa.select(n.label("n")).cte("c", nesting=True).c.n).subquery().c.n),
    "cte-recursive": recursive,
    "union": lambda n: sa.union(sa.select(AUTHOR.c.id), sa.select(n)),
    "union-all-ordered": lambda n: sa.union_all(sa.select(n.label("n")), sa.select(BOOK.c.id)).order_by("n").limit(2),
    "except-in-a-subquery": lambda n: sa.select(sa.except_(sa.select(AUTHOR.c.id), sa.select(n)).subquery()),
    "union-of-unions": lambda n: sa.union(sa.union(sa.select(AUTHOR.c.id), sa.select(n)), sa.select(BOOK.c.id)),
    "values": lambda n: sa.select(
        sa.values(sa.column("a", sa.Integer), sa.column("b", sa.Integer), name="v").data([(1, 2), (3, 4)]), n
    ),
    "correlate": lambda n: sa.select(
        AUTHOR.c.id,
        sa.select(n).where(AUTHOR.c.id == BOOK.c.author_id, BOOK.c.id == 0).correlate(AUTHOR).scalar_subquery(),
    ),
    "orm-column": lambda n: sa.select(Author.name, n),
    "orm-where": lambda n: sa.select(Author).where(n > 0),
    "orm-inner-column": lambda n: sa.select(Author.name).where(Author.id.in_(sa.select(n))),
    "orm-inner-entity": lambda n: sa.select(sa.select(Author).where(n > 0).subquery().c.id),
    "orm-inner-join": lambda n: sa.select(sa.select(Author.id).join(Book, Author.id == n).subquery()),
    "orm-any": lambda n: sa.select(Author).where(Author.books.any(Book.id == n)),
    "orm-has": lambda n: sa.select(Book).where(Book.author.has(Author.id == n)),
    "orm-alias": lambda n: sa.select(aliased(Author, sa.select(Author).where(n > 0).subquery())),
    "orm-union": lambda n: sa.union_all(sa.select(Author.id), sa.select(Author.id).where(n > 0)),
    "orm-exists": lambda n: sa.select(sa.select(Author).where(Author.id == n).exists()),
    "orm-loader-criteria": lambda n: sa.select(Author).options(with_loader_criteria(Author, n > 0)),
    "orm-join-criteria": lambda n: sa.select(Author).join(Author.books.and_(Book.id == n)),
    "orm-inner-join-criteria": lambda n: sa.select(
        sa.select(Author.id).join(Author.books.and_(Book.id == n)).subquery()
    ),
    "orm-with-expression": lambda n: sa.select(Author).options(with_expression(Author.extra, n)),
    "orm-limited-eager-load": lambda n: sa.select(Author).options(joinedload(Author.books)).order_by(n).limit(1),
    "orm-from-statement": lambda n: sa.select(Author).from_statement(sa.select(Author).where(n > 0)),
}

every_place = pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)


# ---- what is not known


class Shouted(TypeDecorator[str]):
    """Renders a function around each of its values."""

    impl = sa.String
    cache_ok = True

    def bind_expression(self, bindparam: Any) -> Any:
        return sa.func.upper(bindparam)


class Whispered(TypeDecorator[str]):
    """Renders a function around each of its columns."""

    impl = sa.String
    cache_ok = True

    def column_expression(self, column: Any) -> Any:
        return sa.func.evil(column)


class Harmless(TypeDecorator[int]):
    """Converts in Python alone."""

    impl = sa.Integer
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return -value


class Vector(UserDefinedType[Any]):
    """A type that somebody else's code reads."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "vector"


class Short(sa.String):
    """A type of the application's own that says how it is rendered."""


class lower(functions.GenericFunction[str]):  # noqa: N801  # the name that it pretends to have
    """Has the name of a built-in, and renders what it likes; known to nobody but this file."""

    name = "lower"
    identifier = "not_lower"
    inherit_cache = True


class Custom(ColumnElement[int]):
    """An element that this file renders."""

    inherit_cache = True
    type = sa.Integer()
    _traverse_internals = []  # noqa: RUF012  # as SQLAlchemy declares it


class Known(functions.char_length):
    """A subclass of what is known."""

    inherit_cache = True


@compiles(Custom)
def _render_custom(element: Any, compiler: Any, **_: Any) -> str:
    return "evil(1)"


@compiles(Short)
def _render_short(type_: Any, compiler: Any, **_: Any) -> str:
    return "evil_domain"


ID = AUTHOR.c.id
POISONS: dict[str, Number] = {
    "unknown-function": sa.func.evil(ID),
    "schema": sa.func.tenant.abs(ID),
    "catalog-by-name": sa.func.pg_catalog.abs(ID),
    "quoted-function": functions.Function(quoted_name("coalesce", True), ID, 0, type_=sa.Integer),
    "quoted-upper": functions.Function(quoted_name("ABS", True), ID, type_=sa.Integer),
    "own-class-of-a-known-name": sa.func.not_lower(ID),
    "subclass-of-a-known-function": Known(ID),
    "set-config": sa.cast(sa.func.set_config("app.tenant", "1", True), sa.Integer),
    "nextval": sa.func.nextval("numbers"),
    "setval": sa.func.setval("numbers", 1),
    "next-value": SEQUENCE.next_value(),
    "advisory-lock": sa.cast(sa.func.pg_try_advisory_xact_lock(1), sa.Integer),
    "dblink": sa.func.dblink_exec("x", "y"),
    "sql-in-a-string": sa.func.query_to_xml("SELECT 1", True, True, ""),
    "now": sa.extract("year", sa.func.now()),
    "current-timestamp": sa.extract("year", sa.func.current_timestamp()),
    "current-date": sa.extract("year", sa.func.current_date()),
    "local-time": sa.extract("hour", sa.func.localtime()),
    "age": sa.extract("year", sa.func.age(AUTHOR.c.born)),
    "transaction-id": sa.cast(sa.func.pg_current_xact_id(), sa.Integer),
    "text": sa.type_coerce(sa.text("evil(1)"), sa.Integer),
    "literal-column": sa.literal_column("evil(1)", sa.Integer),
    "literal-column-with-a-number": sa.literal_column("1 + evil(1)", sa.Integer),
    "unquoted-name": sa.column(quoted_name("evil(1)", False), sa.Integer),
    "unquoted-table": sa.table(quoted_name("evil(1)", False), sa.column("x", sa.Integer)).c.x,
    "operator": ID.op("+")(1),
    "boolean-operator": sa.cast(ID.bool_op("@@@")(1), sa.Integer),
    "operator-that-looks-known": sa.cast(AUTHOR.c.tags.op("@>")(AUTHOR.c.tags), sa.Integer),
    "unary-operator": sa.sql.expression.UnaryExpression(ID, operator=sa.sql.operators.custom_op("!!")),
    "compiled-by-hand": Custom(),
    "type-around-a-value": sa.cast(sa.literal("1", Shouted), sa.Integer),
    "type-around-a-column": sa.cast(sa.type_coerce(AUTHOR.c.name, Whispered), sa.Integer),
    "type-of-a-unary": sa.cast(
        sa.sql.expression.UnaryExpression(AUTHOR.c.name, operator=sa.sql.operators.neg, type_=Whispered()), sa.Integer
    ),
    "user-defined-type": sa.cast(sa.cast("[1]", Vector), sa.Integer),
    "user-defined-items": sa.func.cardinality(sa.cast("{}", postgresql.ARRAY(Vector))),
    "domain": sa.cast(sa.cast(ID, postgresql.DOMAIN("evil", sa.Integer)), sa.Integer),
    "subclass-of-a-type": sa.cast(sa.cast("a", Short), sa.Integer),
    "unquoted-collation": sa.cast(sa.cast(ID, sa.String(collation=quoted_name("C, evil(1)", False))), sa.Integer),
    "text-as-precision": sa.cast(sa.cast(ID, sa.Numeric("3), evil(1), CAST(1 AS INTEGER")), sa.Integer),  # type: ignore[call-overload]
    "text-as-fields": sa.cast(sa.cast(ID, postgresql.INTERVAL(fields="YEAR), evil(1), (1")), sa.Integer),
    "unquoted-enum": sa.cast(sa.cast("a", sa.Enum("a", name=quoted_name("evil", False))), sa.Integer),
    "extract-of-a-text": sa.extract("year FROM now()), evil(1), extract(year", AUTHOR.c.born),
    "scalar-subquery-with-a-lock": sa.select(BOOK.c.id).limit(1).with_for_update().scalar_subquery(),
    "entity-with-a-function": sa.select(sa.select(Odd).subquery().c.cost).limit(1).scalar_subquery(),
    "entity-told-by-a-function": sa.select(sa.select(OddPoet.id).subquery().c.id).limit(1).scalar_subquery(),
}
HARMLESS_NUMBERS: dict[str, Number] = {
    "column": ID,
    "bound": sa.literal(1),
    "function": sa.func.abs(ID),
    "decorated": sa.type_coerce(ID, Harmless),
}


@every_place
def test_known_in_every_place(place: MakeStatement) -> None:
    """A read that is made of known parts is known to be one."""
    missed = [name for name, number in HARMLESS_NUMBERS.items() if not is_harmless(compiled(place(number)))]

    assert missed == []


@every_place
def test_unknown_in_every_place(place: MakeStatement) -> None:
    """One part that is not known makes the whole unknown."""
    missed = [name for name, poison in POISONS.items() if is_harmless(compiled(place(poison)))]

    assert missed == []


INSERT = sa.insert(BOOK).values(id=7).returning(BOOK.c.id)
READ = sa.select(AUTHOR.c.id)

UNKNOWN_STATEMENTS: dict[str, Any] = {
    "text": sa.text("SELECT 1"),
    "text-with-columns": sa.text("SELECT 1 AS id").columns(BOOK.c.id),
    "select-from-text": sa.select(sa.text("SELECT 1 AS id").columns(BOOK.c.id).subquery()),
    "text-as-a-column": sa.select(sa.text("evil(1)")),
    "text-as-a-table": READ.select_from(sa.text("evil(1)")),
    "text-as-a-condition": READ.where(sa.text("evil(1)")),
    "text-as-an-order": READ.order_by(sa.text("evil(1)")),
    "text-as-a-group": READ.group_by(sa.text("evil(1)")),
    "orm-from-text": sa.select(Author).from_statement(sa.text("SELECT * FROM author")),
    "insert": INSERT,
    "update": sa.update(BOOK).values(id=7),
    "delete": sa.delete(BOOK),
    "orm-insert-returning": sa.select(Book).from_statement(sa.insert(Book).values(id=7).returning(Book)),
    "writing-cte": sa.select(INSERT.cte("c").c.id),
    "writing-cte-added": READ.add_cte(INSERT.cte("c")),
    "writing-cte-of-a-union": sa.union(READ, sa.select(BOOK.c.id)).add_cte(INSERT.cte("c")),
    "writing-cte-of-a-subquery": sa.select(READ.add_cte(INSERT.cte("c", nesting=True)).subquery()),
    "for-update": READ.with_for_update(),
    "for-share": READ.with_for_update(read=True, skip_locked=True),
    "orm-for-update": sa.select(Author).with_for_update(),
    "inner-for-update": sa.select(READ.with_for_update().subquery()),
    "prefix": READ.prefix_with("/* */"),
    "suffix": READ.suffix_with("FOR UPDATE"),
    "hint": READ.with_hint(AUTHOR, "ONLY"),
    "statement-hint": sa.select(AUTHOR.c.id).with_statement_hint("FOR UPDATE"),
    "inner-prefix": sa.select(READ.prefix_with("/* */").subquery()),
    "prefix-of-a-cte": sa.select(READ.cte("c").prefix_with("MATERIALIZED")),
    "orm-prefix": sa.select(Author).prefix_with("/* */"),
    "orm-hint": sa.select(Author).with_hint(Author, "ONLY"),
    "tablesample": sa.select(AUTHOR.tablesample(sa.func.system(10)).c.id),
    "table-valued": sa.select(sa.func.generate_series(1, 3).table_valued("n")),
    "column-valued": sa.select(sa.func.unnest(AUTHOR.c.tags).column_valued("n")),
    "scalar-of-a-function": sa.select(sa.func.json_each(AUTHOR.c.facts).scalar_table_valued("key")),
    "unquoted-table": sa.select(sa.table(quoted_name("evil(1)", False), sa.column("x"))),
    "unquoted-schema": sa.select(sa.table("x", sa.column("x"), schema=quoted_name("evil(1).y", False))),
    "unquoted-label": sa.select(ID.label(quoted_name("x, evil(1)", False))),
    "literal-values": sa.select(sa.values(sa.column("a", sa.Integer), name="v", literal_binds=True).data([(1,)])),
    "expression-in-values": sa.select(sa.values(sa.column("a", sa.Integer), name="v").data([(sa.func.evil(1),)])),
    "literal-of-a-decorated-type": sa.select(sa.literal(1, Harmless, literal_execute=True)),
    "type-around-a-column-of-its-own": sa.select(sa.table("t", sa.column("x", Whispered)).c.x),
    "ddl": sa.schema.CreateTable(BOOK),
    "entity-with-a-function": sa.select(Odd),
    "entity-told-by-a-function": sa.select(OddPoet),
    "join-along-a-function": sa.select(Author).join(Author.odd_books),
    "eager-load-along-a-function": sa.select(Author).options(joinedload(Author.odd_books)).limit(1),
    "inner-join-along-a-function": sa.select(sa.select(Author.id).join(Author.odd_books).subquery()),
    "inner-join-along-a-kind": sa.select(sa.select(Book.id).join(Book.author.of_type(Poet)).subquery()),
    "inner-with-expression": sa.select(
        sa.select(Author).options(with_expression(Author.extra, sa.func.evil(ID))).subquery()
    ),
    "inner-eager-load-with-criteria": sa.select(
        sa.select(Author).options(joinedload(Author.books.and_(sa.func.evil(Book.id) > 1))).subquery()
    ),
    "any-along-a-function": sa.select(Author).where(Author.odd_books.any()),
    "criteria-with-a-function-inside": sa.select(Author)
    .where(Author.id.in_(sa.select(Book.author_id)))
    .options(with_loader_criteria(Book, sa.func.evil(Book.id) > 0)),
    "criteria-that-are-made-late": sa.select(Author)
    .where(Author.id.in_(sa.select(Book.author_id)))
    .options(with_loader_criteria(Book, lambda book: book.id > 0)),
    "criteria-of-an-inner-select": sa.select(
        sa.select(Book).options(with_loader_criteria(Book, sa.func.evil(Book.id) > 0)).subquery().c.id
    ),
}


@pytest.mark.parametrize("statement", UNKNOWN_STATEMENTS.values(), ids=UNKNOWN_STATEMENTS)
def test_unknown_statements(statement: Any) -> None:
    """What writes, locks, is text, or is put into the text, is not known."""
    assert not is_harmless(compiled(statement))


KNOWN_STATEMENTS: dict[str, Any] = {
    "constant": sa.select(sa.literal(1), sa.null(), sa.true(), sa.false()),
    "table": sa.select(AUTHOR),
    "entity": sa.select(Author),
    "part-of-an-entity": sa.select(Author).options(defer(Author.shout)),
    "subclass": sa.select(Poet),
    "column-of-an-entity": sa.select(Author.shout, Author.mood),
    "count": sa.select(sa.func.count()).select_from(Author),
    "count-of-a-page": sa.select(sa.func.count()).select_from(sa.select(Author).join(Author.books).subquery()),
    "count-of-a-page-with-options": sa.select(sa.func.count()).select_from(
        sa.select(Author).options(joinedload(Author.books), lazyload("*")).subquery()
    ),
    "inner-subclass": sa.select(sa.func.count()).select_from(sa.select(Poet).subquery()),
    "inner-relationship": sa.select(sa.select(Author.id).join(Author.loved_books).subquery()),
    "join-along-a-relationship": sa.select(Author, Book).join(Author.books, isouter=True),
    "eager-load": sa.select(Book).options(joinedload(Book.author), selectinload(Book.author, Author.loved_books)),
    "limited-eager-load": sa.select(Author).options(joinedload(Author.books)).order_by(Author.id).limit(1),
    "contained-eager-load": sa.select(Author).join(Author.books).options(contains_eager(Author.books)),
    "any": sa.select(Author).where(Author.books.any(), ~Author.loved_books.any(Book.id > 1)),
    "contains": sa.select(Book).where(Book.author == Author(id=1)),
    "criteria": sa.select(Author).options(with_loader_criteria(Author, Author.id > 1)),
    "criteria-and-an-inner-select": sa.select(Author)
    .where(Author.id.in_(sa.select(Book.author_id)))
    .options(with_loader_criteria(Book, Book.id > 1)),
    "enum": sa.select(AUTHOR.c.id).where(AUTHOR.c.mood == "calm"),
    "date": sa.select(AUTHOR.c.id).where(AUTHOR.c.born < datetime.date(2000, 1, 1)),
    "date-difference": sa.select(AUTHOR.c.born - datetime.date(2000, 1, 1), sa.extract("isodow", AUTHOR.c.born)),
    "match": sa.select(AUTHOR.c.name.match("anna"), sa.func.to_tsvector("english", AUTHOR.c.name)),
    "json-readers": sa.select(
        sa.func.jsonb_extract_path_text(AUTHOR.c.facts, "b", "c"), sa.func.jsonb_typeof(AUTHOR.c.facts)
    ),
    "json-builders": sa.select(sa.func.jsonb_agg(AUTHOR.c.name), sa.func.json_build_object("a", 1)),
    "set": sa.select(sa.func.unnest(AUTHOR.c.tags), sa.func.generate_series(1, 2)),
    "dates": sa.select(sa.func.date_trunc("month", AUTHOR.c.born), sa.func.to_char(AUTHOR.c.born, "YYYY")),
    "strings": sa.select(
        sa.func.lower(AUTHOR.c.name), sa.func.concat_ws("-", "a", "b"), sa.func.char_length(sa.literal("abc"))
    ),
    "who": sa.select(sa.func.current_user(), sa.func.session_user(), sa.func.current_database()),
    "alias": sa.select(BOOKS_OF.c.id),
    "natural-order": sa.select(AUTHOR.c.id.label("n")).order_by("n"),
}

every_known_statement = pytest.mark.parametrize("statement", KNOWN_STATEMENTS.values(), ids=KNOWN_STATEMENTS)


@every_known_statement
def test_known_statements(statement: Any) -> None:
    """What apps read every day is known."""
    assert is_harmless(compiled(statement))


@pytest.mark.skipif(not IS_21, reason="SQLAlchemy 2.1 has these")
def test_what_only_21_has() -> None:
    """Frames of groups, what they leave out, and frames as objects are known."""
    frame = sa.func.sum(ID).over(order_by=ID, groups=(None, 1), exclude="CURRENT ROW")
    window = sa.func.sum(ID).over(
        order_by=ID, rows=sa.FrameClause(2, 3, sa.FrameClauseType.PRECEDING, sa.FrameClauseType.FOLLOWING)
    )

    assert is_harmless(compiled(sa.select(frame, window)))


def test_another_database() -> None:
    """The lists are PostgreSQL's."""
    assert not is_harmless(compiled(READ, sqlite.dialect()))


def test_a_compiler_of_the_applications_own() -> None:
    """A dialect that renders in its own way renders anything."""
    dialect = postgresql.psycopg2.dialect()  # type: ignore[no-untyped-call]

    class Compiler(PGCompiler):
        pass

    dialect.statement_compiler = Compiler

    assert not is_harmless(compiled(READ, dialect))


def test_a_known_class_that_is_rendered_by_hand() -> None:
    """``@compiles`` on a class of SQLAlchemy's is seen."""
    from sqlalchemy.ext.compiler import deregister

    compiles(sa.sql.expression.Case, "postgresql")(lambda element, compiler, **_: "evil(1)")
    try:
        assert not is_harmless(compiled(sa.select(sa.case((ID > 1, 1)))))
    finally:
        deregister(sa.sql.expression.Case)
    assert is_harmless(compiled(sa.select(sa.case((ID > 1, 1)))))


# ---- statements that nobody has thought of


def grown(numbers: st.SearchStrategy[Number]) -> st.SearchStrategy[Number]:
    two = st.tuples(numbers, numbers)
    return st.one_of(
        two.map(lambda ab: ab[0] + ab[1]),
        two.map(lambda ab: sa.func.coalesce(*ab)),
        two.map(lambda ab: sa.case((ab[0] > ab[1], ab[0]), else_=1)),
        two.map(lambda ab: sa.select(ab[0]).where(ab[1] > 0).scalar_subquery()),
        two.map(lambda ab: sa.func.sum(ab[0]).over(partition_by=ab[1])),
        two.map(
            lambda ab: sa.select(
                sa.union_all(sa.select(ab[0].label("n")), sa.select(ab[1])).subquery().c.n
            ).scalar_subquery()
        ),
        two.map(lambda ab: sa.select(sa.select(ab[0].label("n"), ab[1].label("m")).cte().c.n).scalar_subquery()),
        two.map(lambda ab: sa.cast(sa.exists().where(Author.books.any(ab[0] > ab[1])), sa.Integer)),
        numbers.map(lambda n: sa.cast(n, sa.Integer)),
        numbers.map(lambda n: sa.select(sa.select(Author).where(n > 0).subquery().c.id).scalar_subquery()),
    )


LEAVES = st.sampled_from([ID, BOOK.c.id, Author.id, sa.literal(3), sa.func.evil(ID), sa.func.abs(ID), ID, BOOK.c.id])


@settings(deadline=None)
@given(st.recursive(LEAVES, grown, max_leaves=8), st.sampled_from(list(PLACES.values())))
def test_any_statement(number: Number, place: MakeStatement) -> None:
    """A statement is known exactly if the application's function is not in its text."""
    try:
        made = compiled(place(number))
    except sa.exc.InvalidRequestError:  # an inner SELECT that is correlated with all that it reads from
        reject()

    assert is_harmless(made) == ("evil" not in str(made))


# ---- what SQLAlchemy runs


@pytest.fixture(params=["psycopg2", "psycopg"])
def engine(request: pytest.FixtureRequest, postgres: PostgreSQLDatabase) -> Iterator[sa.Engine]:
    """An engine on a database with two authors and three books."""
    url = sa.make_url(postgres.driverless_url).set(drivername=f"postgresql+{request.param}")
    engine = sa.create_engine(url, enable_from_linting=False)
    Base.metadata.create_all(engine, [AUTHOR, BOOK])
    with Session(engine) as session:
        anna = {"born": datetime.date(1900, 2, 3), "tags": [1, 2], "facts": {"a": 1, "b": {"c": "d"}}, "mood": "calm"}
        session.add(Author(id=1, name="Anna", **anna))
        session.add(Poet(id=2, name="Bert", born=datetime.date(2000, 1, 1), tags=[], facts={"a": 2}, mood="wild"))
        session.flush()
        session.add_all(Book(id=id_, author_id=1 + id_ // 3, price=id_ * 2) for id_ in (1, 2, 3))
        session.commit()
    yield engine
    engine.dispose()


def told(engine: sa.Engine) -> list[bool]:
    """Return a list that what is told of each statement comes into."""
    answers: list[bool] = []

    def tell(_: Any, __: Any, ___: Any, ____: Any, context: ExecutionContext, _____: bool) -> None:
        answers.append(is_harmless_read(context))

    event.listen(engine, "before_cursor_execute", tell)
    return answers


RUN = {
    **{name: place(sa.func.abs(ID)) for name, place in PLACES.items()},
    **KNOWN_STATEMENTS,
}


def test_known_reads_give_without_a_transaction_what_they_give_in_one(engine: sa.Engine) -> None:
    """Each runs on a server that refuses writes, and leaves no transaction's number behind."""
    bare = engine.execution_options(isolation_level="AUTOCOMMIT")
    answers = told(engine)
    of_transaction = sa.text("SELECT pg_current_xact_id_if_assigned() IS NULL")
    differing = []
    with engine.connect() as within, bare.connect() as without:
        without.exec_driver_sql("SET default_transaction_read_only = on")
        for name, statement in RUN.items():
            expected = list(within.execute(statement))
            assert within.scalar(of_transaction), name
            if sorted(map(repr, without.execute(statement))) != sorted(map(repr, expected)):
                differing.append(name)
            within.rollback()

    assert differing == []
    assert answers.count(False) == len(RUN) * 2 + 1  # the SET, those in AUTOCOMMIT, and the questions


def test_what_a_session_reads(engine: sa.Engine) -> None:
    """Objects by their key, lazy loads, refreshes and the loads that follow a query are known."""
    answers = told(engine)

    with Session(engine) as session:
        author = session.get_one(Author, 1) if IS_21 else session.get(Author, 1)
        assert author is not None
        assert len(author.books) == 2
        session.refresh(author)
        session.expire(author)
        assert author.name == "Anna"
        session.scalars(sa.select(Author).options(selectinload(Author.books), subqueryload(Author.loved_books))).all()
        assert session.query(Author).filter(Author.id.in_([1, 2])).count() == 2
        session.query(Author).join(Author.books).order_by(Author.name).first()
        session.scalars(sa.select(Book).where(Book.author == author)).all()

    assert len(answers) >= 9
    assert all(answers)


def test_what_a_session_writes(engine: sa.Engine) -> None:
    """Nothing that a flush sends is known; what locks its rows is not either."""
    answers = told(engine)

    with Session(engine) as session:
        session.add(Book(id=8))
        session.flush()
        session.execute(sa.update(BOOK).values(price=1).returning(BOOK.c.id)).all()
        session.execute(sa.insert(Book), [{"id": 9}, {"id": 10}])
        book = session.scalars(sa.select(Book).with_for_update()).first()
        session.refresh(book, with_for_update=True)
        session.delete(book)
        session.flush()

    assert answers
    assert not any(answers)


@pytest.mark.parametrize(
    "options",
    [{"isolation_level": "SERIALIZABLE"}, {"postgresql_deferrable": True}, {"stream_results": True}, {"yield_per": 2}],
    ids=lambda options: next(iter(options)),
)
def test_options_of_an_execution(engine: sa.Engine, options: dict[str, Any]) -> None:
    """A cursor of the server's lives in a transaction, and who names an isolation wants one."""
    answers = told(engine)

    with engine.connect().execution_options(**options) as connection:
        connection.execute(READ).all()
    with engine.connect() as connection:
        connection.execute(READ).all()

    assert answers == [False, True]


def test_many_executions_of_one_read(engine: sa.Engine) -> None:
    """``executemany`` of a SELECT is none that anybody reads."""
    answers = told(engine)

    with engine.connect() as connection:
        connection.execute(READ.where(sa.bindparam("n") == ID), [{"n": 1}, {"n": 2}])

    assert answers == [False]


def test_a_hole_that_no_structure_shows(engine: sa.Engine) -> None:
    """A view may set what its transaction is to keep, and looks like any table, as documented."""
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE VIEW odd AS SELECT set_config('app.tenant', '7', true) AS tenant")
    odd = sa.table("odd", sa.column("tenant"))
    answers = told(engine)
    tenant = sa.text("SELECT current_setting('app.tenant', true)")

    with engine.connect() as connection:
        connection.execute(sa.select(odd.c.tenant)).all()
        within = connection.scalar(tenant)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.select(odd.c.tenant)).all()
        without = connection.scalar(tenant)

    assert answers[0]
    assert (within, without) == ("7", "")


def test_known_functions_are_the_servers_own(postgres: PostgreSQLDatabase) -> None:
    """Each is in the catalog or in the grammar; none is volatile but for the time and for chance."""
    of_the_grammar = {"coalesce", "current_catalog", "greatest", "grouping", "least", "nullif", "trim", "user"}
    of_later_servers = {
        "regexp_count",
        "regexp_instr",
        "regexp_like",
        "regexp_substr",
        "range_agg",
        "unistr",
        "date_bin",
    }
    names = """
        SELECT proname, bool_or(provolatile = 'v') FROM pg_proc
         WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = ANY (%s) GROUP BY proname
    """

    found: dict[str, bool] = {row[0]: row[1] for row in postgres.rows(names, list(KNOWN_FUNCTIONS))}

    assert set(KNOWN_FUNCTIONS) - set(found) - of_later_servers <= of_the_grammar
    assert {name for name, is_volatile in found.items() if is_volatile} == {
        "clock_timestamp",
        "gen_random_uuid",
        "random",
    }


# ---- the cache


def test_the_answer_stays_with_the_compiled_statement(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second execution of a statement, with other values, asks nobody."""
    looked: list[Compiled] = []

    class Counted(_Look):
        def __init__(self, made: Compiled) -> None:
            looked.append(made)
            super().__init__(made)

    monkeypatch.setattr("flask_uow._harmless._Look", Counted)
    answers = told(engine)

    with engine.connect() as connection:
        for number in range(3):
            connection.execute(sa.select(AUTHOR.c.name).where(ID.in_(range(number + 1)))).all()

    assert answers == [True] * 3
    assert len(looked) == 1


def test_the_answer_keeps_nothing_alive() -> None:
    """When the statement is gone from SQLAlchemy's cache, all is gone."""
    made = compiled(sa.select(AUTHOR.c.name))
    assert is_harmless(made)
    gone = weakref.ref(made)

    del made
    gc.collect()

    assert gone() is None

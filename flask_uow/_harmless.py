"""Which statements are known to read only, and to leave nothing that a transaction would keep.

The answer comes from SQLAlchemy's own structure of what it has compiled, never from the text. Everything is on a list:
the classes of elements, their kinds of attributes, operators, types and functions; what is on none makes the answer
no. So does what its writer made: text, operators of one's own, ``@compiles``, types that render SQL.

A known read may run without BEGIN in READ COMMITTED, where each statement has a snapshot of its own anyway. What tells
the time of the transaction (``now()``, ``current_date``) is on no list: two such statements would tell two times.

The structure cannot show what lies behind a name. A table may be a view, have a policy or a foreign server; a built-in
function or operator may have an overload for other arguments, of the application's own. If one of these calls
``set_config(..., true)``, what it sets is gone with the statement; a unit that relies on it has to say BEGIN. Values
are not looked at either: ``'now'`` and ``'today'`` as dates are those of the statement, and an adapter of the driver's
that renders raw SQL renders it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from types import BuiltinFunctionType, FunctionType
from typing import Any

from sqlalchemy.engine import Dialect, ExecutionContext
from sqlalchemy.engine.interfaces import Compiled
from sqlalchemy.orm import ColumnProperty, InstrumentedAttribute, Load, QueryableAttribute, RelationshipProperty
from sqlalchemy.orm.strategy_options import _WildcardLoad
from sqlalchemy.sql import functions, operators
from sqlalchemy.sql.annotation import Annotated
from sqlalchemy.sql.elements import ClauseElement, ColumnElement, quoted_name
from sqlalchemy.sql.selectable import FromClause, SelectBase, TableClause
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

# Options of one execution that ask for a cursor of the server's, or for another transaction than the session's own.
_OPTIONS_OF_A_TRANSACTION = frozenset(("isolation_level", "postgresql_deferrable", "stream_results", "yield_per"))

_ANSWER = "_uow_is_harmless"
"""Where a compiled statement keeps the answer; SQLAlchemy's cache keeps the compiled statement."""

# Names of classes by their module: some are private to SQLAlchemy, some only one version has. A subclass is not meant.
_CLASSES = {
    "sqlalchemy.sql.elements": """
        AggregateOrderBy AsBoolean BinaryExpression BindParameter BooleanClauseList Case Cast ClauseList
        CollationClause CollectionAggregate ColumnClause ElementList ExpressionClauseList Extract False_ FrameClause
        FunctionFilter Grouping Label Null OrderByList Over Slice True_ Tuple TypeClause TypeCoerce UnaryExpression
        WithinGroup _label_reference _textual_label_reference
    """,
    "sqlalchemy.sql.selectable": """
        Alias CTE CompoundSelect Exists FromGrouping Join Lateral NamedFromGrouping ScalarSelect ScalarValues Select
        SelectStatementGrouping Subquery TableClause Values _OffsetLimitParam
    """,
    "sqlalchemy.sql.schema": "Column Table",
    "sqlalchemy.orm.util": "_ORMJoin",
    "sqlalchemy.dialects.postgresql.array": "array",
    "sqlalchemy.dialects.postgresql.ext": "DistinctOnClause aggregate_order_by",
}
_KNOWN_CLASSES = frozenset(f"{module}.{name}" for module, names in _CLASSES.items() for name in names.split())
_MODULES_OF_FUNCTIONS = frozenset(("sqlalchemy.sql.functions", "sqlalchemy.dialects.postgresql.ext"))

# Built-ins that write nothing, keep nothing for the transaction, and say the same in one and outside.
KNOWN_FUNCTIONS = frozenset(
    """
    array_agg avg bit_and bit_or bit_xor bool_and bool_or corr count covar_pop covar_samp every json_agg json_object_agg
    jsonb_agg jsonb_object_agg max min mode percentile_cont percentile_disc range_agg regr_avgx regr_avgy regr_count
    regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy stddev stddev_pop stddev_samp string_agg
    sum var_pop var_samp variance
    grouping
    cume_dist dense_rank first_value lag last_value lead nth_value ntile percent_rank rank row_number
    coalesce greatest least nullif num_nonnulls num_nulls
    abs acos asin atan atan2 cbrt ceil ceiling cos cot degrees div exp factorial floor gcd lcm ln log log10 mod pi pow
    power radians random round scale sign sin sqrt tan trim_scale trunc width_bucket
    ascii bit_length btrim char_length character_length chr concat concat_ws convert_from convert_to decode encode
    format initcap left length lower lpad ltrim md5 normalize octet_length overlay position quote_ident quote_literal
    quote_nullable regexp_count regexp_instr regexp_like regexp_match regexp_matches regexp_replace
    regexp_split_to_array regexp_split_to_table regexp_substr repeat replace reverse right rpad rtrim sha224 sha256
    sha384 sha512 split_part starts_with strpos substr substring to_hex translate trim unistr upper
    date date_bin date_part date_trunc extract isfinite justify_days justify_hours justify_interval make_date
    make_interval make_time make_timestamp make_timestamptz timezone to_char to_date to_number to_timestamp
    clock_timestamp statement_timestamp
    array_append array_cat array_dims array_fill array_length array_lower array_ndims array_position array_positions
    array_prepend array_remove array_replace array_to_string array_upper cardinality generate_series
    generate_subscripts string_to_array string_to_table unnest
    array_to_json json_array_elements json_array_elements_text json_array_length json_build_array json_build_object
    json_each json_each_text json_extract_path json_extract_path_text json_object json_object_keys json_strip_nulls
    json_typeof jsonb_array_elements jsonb_array_elements_text jsonb_array_length jsonb_build_array jsonb_build_object
    jsonb_each jsonb_each_text jsonb_extract_path jsonb_extract_path_text jsonb_insert jsonb_object jsonb_object_keys
    jsonb_path_exists jsonb_path_match jsonb_path_query jsonb_path_query_array jsonb_path_query_first jsonb_pretty
    jsonb_set jsonb_set_lax jsonb_strip_nulls jsonb_typeof row_to_json to_json to_jsonb
    isempty lower_inc lower_inf multirange range_merge upper_inc upper_inf
    abbrev broadcast family host hostmask masklen netmask network set_masklen
    get_bit get_byte set_bit set_byte gen_random_uuid
    numnode phraseto_tsquery plainto_tsquery querytree setweight strip to_tsquery to_tsvector ts_delete ts_filter
    ts_headline ts_rank ts_rank_cd tsvector_to_array websearch_to_tsquery
    current_catalog current_database current_schema current_user session_user user version
    """.split()
)

_KNOWN_FIELDS = frozenset(
    """
    century day decade dow doy epoch hour isodow isoyear julian microseconds millennium milliseconds minute month
    quarter second timezone timezone_hour timezone_minute week year
    """.split()
)
_KNOWN_EXCLUSIONS = frozenset(("CURRENT ROW", "GROUP", "NO OTHERS", "TIES"))
# A custom operator is known if it is the dialect's own object; op() makes new ones.
_KNOWN_CUSTOM_OPERATORS = frozenset(
    id(operator)
    for module in ("array", "hstore", "json", "ranges")
    for operator in vars(import_module(f"sqlalchemy.dialects.postgresql.{module}")).values()
    if isinstance(operator, operators.custom_op)
)
_PLAIN = (bool, int, str, type(None))


class _UnknownError(Exception):
    """Something of a statement is on no list."""


def is_harmless_read(context: ExecutionContext) -> bool:
    """Whether what is about to run is a read that PostgreSQL may run without BEGIN, in READ COMMITTED and read-only.

    The isolation of the engine and what stands in the transaction already are the caller's to know, and whether a
    listener has put another text in the place of the compiled statement's.

    :param context: SQLAlchemy's, as events of a cursor get it.
    """
    compiled = context.compiled
    if compiled is None or context.executemany or getattr(context, "_is_server_side", False):
        return False
    if not _OPTIONS_OF_A_TRANSACTION.isdisjoint(context.execution_options):
        return False
    return is_harmless(compiled)


def is_harmless(compiled: Compiled) -> bool:
    """Whether a compiled statement is known to be a harmless read, whatever the options of its execution.

    The answer stays with the compiled statement, so that only the first execution of it pays for the look.
    """
    answer: bool | None = compiled.__dict__.get(_ANSWER)
    if answer is None:
        answer = _look_at(compiled)
        setattr(compiled, _ANSWER, answer)
    return answer


def _look_at(compiled: Compiled) -> bool:
    try:
        _Look(compiled).at_everything()
    except Exception:  # noqa: BLE001  # a structure that this module reads wrongly is one that it does not know
        return False
    return True


class _Look:
    """A walk over all that a statement is made of.

    :param compiled: the statement.
    """

    def __init__(self, compiled: Compiled) -> None:
        _require(compiled.dialect.name == "postgresql" and type(compiled).__module__.startswith("sqlalchemy."))
        self._dialect: Dialect = compiled.dialect
        # For the ORM, the state's statement is the one that was rendered, criteria and eager loads and all.
        statement = getattr(compiled.compile_state, "statement", None)
        _require(isinstance(statement, SelectBase))
        self._waiting: list[Any] = [statement]
        self._seen: dict[int, object] = {}
        self._criteria = list(_criteria_of(getattr(compiled, "_global_attributes", {})))

    def at_everything(self) -> None:
        """Return if all is known.

        :raises _UnknownError: if something is not.
        """
        while self._waiting:
            element = self._waiting.pop()
            if id(element) not in self._seen:
                self._seen[id(element)] = element
                self._look_at(element)

    def _look_at(self, element: Any) -> None:
        if type(element) in (InstrumentedAttribute, QueryableAttribute):
            self._look_at_relationship(element)
            return
        cls = _class_of(element)
        _require(not hasattr(cls, "_compiler_dispatcher"))  # that is what @compiles leaves
        if issubclass(cls, functions.FunctionElement):
            _check_function(element, cls)
        else:
            _require(f"{cls.__module__}.{cls.__qualname__}" in _KNOWN_CLASSES)
        if isinstance(element, TableClause):  # its columns are looked at where they are used
            _check_names(element.name, getattr(element, "schema", None))
            return
        if isinstance(element, ColumnElement):
            _check_type(element.type, self._dialect)
        for name, kind in element._traverse_internals:
            self._look_at_attribute(name, kind, getattr(element, name))
        _check_text(element, cls)
        self._waiting += getattr(element, "_independent_ctes", ())  # which 2.0.0 does not list for all that have them
        self._look_past_orm(element)

    def _look_at_attribute(self, name: str, kind: InternalTraversal, value: Any) -> None:
        if value is None:
            return
        if kind in _CHILDREN:
            self._waiting += _CHILDREN[kind](value)
        elif kind is InternalTraversal.dp_type:
            _check_type(value, self._dialect)
        elif kind in _CHECKS:
            _CHECKS[kind](value)
        else:
            _require(kind in _IGNORED or not value)

    def _look_past_orm(self, element: Any) -> None:
        """Take all that entities may become: an inner SELECT of the ORM has them in the place of columns still."""
        if (mapper := _mapper_of(element)) is not None and mapper.polymorphic_on is not None:
            self._waiting.append(mapper.polymorphic_on)
        if not isinstance(element, SelectBase) or element._propagate_attrs.get("compile_state_plugin") != "orm":
            return
        self._waiting += self._criteria
        for column in getattr(element, "_raw_columns", ()):
            if isinstance(column, FromClause) and (mapper := _mapper_of(column)) is not None:
                self._waiting += _columns_of(mapper)

    def _look_at_relationship(self, attribute: QueryableAttribute[Any]) -> None:
        """What the ORM makes of a relationship that an inner SELECT joins along."""
        relationship: Any = attribute.property
        _require(isinstance(relationship, RelationshipProperty) and attribute._of_type is None)
        parts = (relationship.primaryjoin, relationship.secondaryjoin, relationship.secondary)
        self._waiting += [part for part in (*parts, relationship.mapper.polymorphic_on) if part is not None]
        self._waiting += attribute._extra_criteria


def _require(is_known: bool) -> None:
    if not is_known:
        raise _UnknownError


def _class_of(element: Any) -> type:
    """The class as written: annotations put one of their own before it."""
    cls = type(element)
    return cls.__bases__[1] if issubclass(cls, Annotated) else cls


def _criteria_of(attributes: dict[Any, Any]) -> Iterator[Any]:
    """What ``with_loader_criteria`` adds to every SELECT of an entity."""
    for key, options in attributes.items():
        if isinstance(key, tuple) and key[0] == "additional_entity_criteria":
            for option in options:
                yield None if option.deferred_where_criteria else option.where_criteria


def _mapper_of(element: Any) -> Any:
    return getattr(element._annotations.get("parententity"), "mapper", None)


def _columns_of(mapper: Any) -> Iterator[Any]:
    for one in mapper.self_and_descendants:
        for loaded in one.iterate_properties:
            if isinstance(loaded, ColumnProperty):
                yield from loaded.columns


# ---- what an attribute may hold


def _one(value: Any) -> Iterable[Any]:
    return (value,)


def _all(value: Iterable[Any]) -> Iterable[Any]:
    return value


def _pairs(value: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    for pair in value:
        yield from pair


def _joins(value: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    for target, condition, source, _flags in value:
        yield from (part for part in (target, condition, source) if part is not None)


def _rows(value: Iterable[Iterable[Iterable[Any]]]) -> Iterator[Any]:
    for rows in value:
        for row in rows:
            yield from (cell for cell in row if isinstance(cell, ClauseElement) or hasattr(cell, "__clause_element__"))


def _modifiers(value: Any) -> Iterator[Any]:
    """What changes how an operator is rendered: LIKE's escape, a regular expression's flags."""
    for name, one in value.items() if isinstance(value, dict) else ():
        if isinstance(one, ClauseElement):
            yield one
        else:
            _require(isinstance(one, _PLAIN) or name == "_python_is_types")


def _options(value: Iterable[Any]) -> Iterator[Any]:
    """What the options of an inner SELECT add to it: their eager loads are not rendered, their expressions are."""
    for option in value:
        _require(isinstance(option, (Load, _WildcardLoad)))
        for load in getattr(option, "context", ()):
            yield from load._extra_criteria
            for one in load.local_opts.values():
                _require(isinstance(one, (ClauseElement, *_PLAIN)))
                yield from (one,) if isinstance(one, ClauseElement) else ()


def _check_operator(operator: Any) -> None:
    if isinstance(operator, operators.custom_op):
        _require(id(operator) in _KNOWN_CUSTOM_OPERATORS)
        return
    _require(type(operator) in (FunctionType, BuiltinFunctionType))
    _require(operator.__module__ in ("sqlalchemy.sql.operators", "_operator"))


def _check_names(*names: object) -> None:
    for name in names:
        _require(not (isinstance(name, quoted_name) and name.quote is False))  # rendered as it is, whatever it is


_CHILDREN: dict[object, Callable[[Any], Iterable[Any]]] = {
    InternalTraversal.dp_clauseelement: _one,
    InternalTraversal.dp_clauseelement_list: _all,
    InternalTraversal.dp_clauseelement_tuple: _all,
    InternalTraversal.dp_clauseelement_tuples: _pairs,
    InternalTraversal.dp_setup_join_tuple: _joins,
    InternalTraversal.dp_dml_multi_values: _rows,
    InternalTraversal.dp_plain_dict: _modifiers,
    InternalTraversal.dp_executable_options: _options,
}
_CHECKS: dict[object, Callable[[Any], None]] = {
    InternalTraversal.dp_operator: _check_operator,
    InternalTraversal.dp_string: _check_names,
    InternalTraversal.dp_anon_name: _check_names,
}
_IGNORED = frozenset(
    (
        InternalTraversal.dp_annotations_key,
        InternalTraversal.dp_boolean,
        InternalTraversal.dp_plain_obj,
        InternalTraversal.dp_propagate_attrs,
    )
)
"""What is rendered from no text; :func:`_check_text` looks at what is."""


def _check_type(type_: TypeEngine[Any], dialect: Dialect) -> None:
    """Refuse a type that renders SQL around its values, and one whose casts may be the application's own code."""
    rendered: Any = type_.dialect_impl(dialect)
    for one in (type_, rendered):
        _require(not (one._has_bind_expression or one._has_column_expression))
        _require(not hasattr(type(one), "_compiler_dispatcher"))
    while isinstance(rendered, TypeDecorator):
        rendered = rendered.impl_instance
    _require(type(rendered).__module__.startswith("sqlalchemy."))
    _require(not isinstance(rendered, UserDefinedType) and type(rendered).__name__ != "DOMAIN")
    _check_names(*(getattr(rendered, part, None) for part in ("name", "schema", "collation")))
    for part in ("fields", "length", "precision", "scale"):  # rendered as they are
        _require(type(getattr(rendered, part, None)) in (int, type(None)))
    for inner in (getattr(rendered, "item_type", None), *getattr(rendered, "types", ())):
        if inner is not None:
            _check_type(inner, dialect)


def _check_function(element: Any, cls: type) -> None:
    _require(cls.__module__ in _MODULES_OF_FUNCTIONS and issubclass(cls, functions.Function))
    _require(not element.packagenames and element.name.lower() in KNOWN_FUNCTIONS)
    _require(not isinstance(element.name, quoted_name))  # in quotes, coalesce is a function that somebody has written


def _check_text(element: Any, cls: type) -> None:
    """Look at the attributes that are rendered without quotes."""
    match cls.__name__:
        case "ColumnClause" | "Column":
            # SQLAlchemy writes count(*) and EXISTS (SELECT 1 ...) so.
            _require(not element.is_literal or element.name == "*" or element.name.isdecimal())
        case "BindParameter" | "_OffsetLimitParam":
            _require(not (element.literal_execute and isinstance(element.type, TypeDecorator)))
        case "Extract":
            _require(element.field.lower() in _KNOWN_FIELDS)
        case "Over":
            _require(not getattr(element, "exclude", None) or element.exclude.upper() in _KNOWN_EXCLUSIONS)
        case "Values" | "ScalarValues":
            _require(not element.literal_binds)

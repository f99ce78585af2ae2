"""What a piece of code may do, as far as its source tells: write, end the transaction, tell others, raise on purpose.

In doubt it may. A method that the source does not lead to may be any method of its name in the project, and where
there is none, its name speaks for it: ``set_password`` writes, ``to_dict`` does not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from enum import Flag

from .._statements import Kind
from ..lint._functions import DefinedNode, Functions
from ..lint._resolve import PROPERTIES, UNITS, Resolver
from ..lint._scopes import FUNCTION_NODES, How, Module, Scope, all_nodes
from ..lint._syntax import decorator_names, dotted
from ..lint._values import (
    COMMITS,
    ROLLBACKS,
    SESSIONS,
    STATEMENTS,
    WRITES,
    ClassValue,
    External,
    FunctionValue,
    Instance,
    Method,
    Role,
)
from ..lint._writes import changes_by_query, kind_of_argument


class Effect(Flag):
    """What a piece of code may do."""

    NOTHING = 0
    WRITES = 1
    ENDS = 2  # a transaction: a commit or rollback by hand, or a unit of its own
    TELLS = 4  # somebody outside of this request
    RAISES = 8  # on purpose: abort(), first_or_404()
    ASKS = 16  # the session for something
    GIVES = 32  # the session what it writes; without, a write may be of an object that no session knows


ANYTHING = Effect.WRITES | Effect.TELLS
STORES = Effect.WRITES | Effect.GIVES

_CHANGING_WORDS = frozenset(
    "add append apply assign attach change clear create decrement delete disable discard drop edit enable execute "
    "extend fill follow grant import increment insert load mark merge mutate new persist ping populate pop process "
    "put register remove rename replace reset reverse revoke save set setdefault sort store subscribe sync toggle "
    "touch unfollow unsubscribe update upsert write".split()
)
# Libraries that answer this request alone, and change no rows.
_QUIET_LIBRARIES = (
    "base64 click collections copy datetime decimal flask flask_babel flask_babelplus flask_login flask_wtf "
    "flask_restful.marshal flask_restx.marshal functools hashlib hmac html itertools json jwt logging markupsafe math "
    "operator os random re secrets sqlalchemy string time typing unicodedata urllib.parse uuid werkzeug wtforms"
).split()
# What they stand for is the app's own.
_PROXIES = ("flask.current_app", "flask.g", "flask_login.current_user")
_QUIET_METHODS = frozenset(
    "all capitalize casefold copy count critical date debug decode dump dumps encode endswith error exception "
    "exists expire expire_all expunge filter filter_by first first_or_404 flash format get get_json get_one "
    "get_or_404 getlist gettext group hexdigest info isdigit isoformat items join json jsonify keys limit log "
    "lower lstrip match name offset one one_or_none order_by paginate partition query refresh replace rstrip "
    "scalar scalar_one scalar_one_or_none scalars search select serialize split splitlines startswith strftime "
    "strip timestamp title to_dict to_json total_seconds unique upper url_for validate validate_on_submit values "
    "warning where".split()
)
_QUIET_STORES = frozenset(("flask.g", "flask.request", "flask.session"))
_FORM_FIELDS = frozenset(("choices", "data", "default", "errors"))
_RESPONSE_PARTS = frozenset(("cache_control", "content_type", "cookies", "headers", "mimetype", "status_code"))
_BUILTIN_EXITS = frozenset(("exit", "quit"))
_BUILTIN_SETTERS = frozenset(("delattr", "eval", "exec", "setattr"))
_HANDED_IN = frozenset(("current_app", "form", "request"))
_FORM_CLASSES = ("flask_wtf.", "wtforms.")
_PLAIN_CONTAINERS = frozenset(("dict", "list", "set"))
_PLAIN_VALUES = frozenset(("bool", "bytes", "float", "int", "optional", "str"))
_OWN_CONTAINERS = (ast.Dict, ast.DictComp, ast.List, ast.ListComp, ast.Set, ast.SetComp)
_CONTAINER_CALLS = frozenset(("OrderedDict", "defaultdict", "dict", "list", "make_response", "set"))


class Effects:
    """Knows the effects of the code of a project.

    :param resolver: knows what names stand for.
    :param modules: the project's modules.
    :ivar may_not_flush: whether some session may ask the database without a flush before.
    """

    def __init__(self, resolver: Resolver, modules: Iterable[Module]) -> None:
        self._resolver = resolver
        self._methods: dict[str, list[FunctionValue]] = {}
        self._properties: dict[str, list[FunctionValue]] = {}
        self._functions: dict[Module, Functions] = {}
        self._known: dict[ast.AST, Effect] = {}
        self._settled: set[ast.AST] = set()
        self._round: set[ast.AST] | None = None
        self.may_not_flush = False
        for module in modules:
            self._note_methods(module)
            self.may_not_flush |= any("autoflush" in line for line in module.lines)

    def functions(self, module: Module) -> Functions:
        """What is known of a module's functions."""
        if module not in self._functions:
            self._functions[module] = Functions(module, self._resolver)
        return self._functions[module]

    def of(self, node: ast.AST, scope: Scope) -> Effect:
        """What an expression or a simple statement may do when it runs."""
        effect = Effect.NOTHING
        for inner in _running(node):
            if isinstance(inner, ast.Call):
                effect |= self.of_call(inner, scope)
            elif isinstance(inner, (ast.Attribute, ast.Subscript)) and isinstance(inner.ctx, (ast.Store, ast.Del)):
                effect |= self._of_store(inner, scope)
            elif isinstance(inner, (ast.Assert, ast.Raise)):
                effect |= Effect.RAISES
            elif isinstance(inner, ast.withitem):
                effect |= self._of_manager(inner.context_expr, scope)
            elif isinstance(inner, ast.Attribute):
                effect |= self._of_load(inner, scope)
        return effect

    def _of_load(self, node: ast.Attribute, scope: Scope) -> Effect:
        """Looking up an attribute, which any property of its name in the project may be."""
        effect = Effect.ASKS if self._is_session(node, scope) else Effect.NOTHING
        for found in self._properties.get(node.attr, ()):
            effect |= self.of_function(found) & (Effect.WRITES | Effect.ENDS)
        return effect

    def _of_manager(self, node: ast.expr, scope: Scope) -> Effect:
        """What a ``with`` statement does with an object of a class of the project, at its beginning and its end."""
        value = self._resolver.value(node, scope)
        return self._of_members(value.cls, "__enter__", "__exit__") if isinstance(value, Instance) else Effect.NOTHING

    def _is_session(self, node: ast.Attribute, scope: Scope) -> bool:
        """Whether something of a session, of what has one, or of a model's query is looked up."""
        owner = self._resolver.value(node.value, scope)
        return node.attr == "query" or owner in SESSIONS or owner is Role.DATABASE

    def of_function(self, value: FunctionValue) -> Effect:
        """What a call of a function of the project may do."""
        if value.node in self._settled:
            return self._known[value.node]
        if self._round is not None:
            return self._in_round(value, self._round)
        # Functions that call each other know the half of it after the first round.
        known = None
        while known != self._known:
            known, self._round = dict(self._known), set()
            self._in_round(value, self._round)
        self._settled |= self._round or set()
        self._round = None
        return self._known[value.node]

    def _in_round(self, value: FunctionValue, seen: set[ast.AST]) -> Effect:
        """What is known of a function, which is looked at once in a round."""
        if value.node not in seen:
            seen.add(value.node)
            self._known[value.node] = self._known.get(value.node, Effect.NOTHING) | self._of_body(value)
        return self._known.get(value.node, Effect.NOTHING)

    def _note_methods(self, module: Module) -> None:
        for node, scope in all_nodes(module.scope):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and scope.is_class:
                found = FunctionValue(node, module.scopes[node])
                self._methods.setdefault(node.name, []).append(found)
                if decorator_names(node) & PROPERTIES:
                    self._properties.setdefault(node.name, []).append(found)

    def _of_body(self, value: FunctionValue) -> Effect:
        node, scope = value.node, value.scope
        if isinstance(node, ast.Lambda):
            return self.of(node.body, scope)
        if self.functions(scope.module).facts(node, scope.parent or scope).is_unit:
            return Effect.ENDS
        effect = self._of_decorators(node, scope.parent or scope)
        for statement in node.body:
            effect |= self.of(statement, scope)
        calls = (inner for inner in scope.nodes if isinstance(inner, ast.Call))
        is_unit = any(self._resolver.value(call, scope) in UNITS for call in calls)
        return effect | (Effect.ENDS if is_unit else Effect.NOTHING)

    def _of_decorators(self, node: DefinedNode, scope: Scope) -> Effect:
        """What the project's decorators do around a function, apart from calling it."""
        effect = Effect.NOTHING
        for decorator in node.decorator_list:
            value = self._resolver.value(decorator.func if isinstance(decorator, ast.Call) else decorator, scope)
            for inner in _functions_in(value) if isinstance(value, FunctionValue) else ():
                effect |= self.of_function(inner)
        return effect & Effect.ENDS | (STORES if Effect.GIVES in effect else Effect.NOTHING)

    # ---- calls

    def of_call(self, node: ast.Call, scope: Scope) -> Effect:
        """What a call may do, its arguments apart."""
        value = self._resolver.value(node.func, scope)
        handed = self._of_handed(node, scope)
        if isinstance(value, Method):
            return handed | _of_session(value, node, scope)
        if changes_by_query(node, scope, self._resolver):
            return handed | STORES
        if isinstance(value, FunctionValue):
            return handed | self.of_function(value)
        if isinstance(value, ClassValue):
            return handed | self._of_constructor(value)
        if value in UNITS:
            return handed | Effect.ENDS
        return handed | self._of_foreign(node, scope)

    def _of_handed(self, node: ast.Call, scope: Scope) -> Effect:
        """What is handed to a call may be called there: ``map(db.session.add, accounts)``."""
        effect = Effect.NOTHING
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            value = self._resolver.value(argument, scope)
            if isinstance(value, Method):
                effect |= Effect.ENDS if _ends(value) else STORES
            elif isinstance(value, FunctionValue):
                effect |= self.of_function(value)
        return effect

    def _of_constructor(self, value: ClassValue) -> Effect:
        effect = self._of_members(value, "__init__", "__post_init__")
        # What it sets is its own, and new.
        return effect if Effect.GIVES in effect else effect & ~Effect.WRITES

    def _of_members(self, cls: ClassValue, *names: str) -> Effect:
        """What methods of a class do, or of those that it comes from."""
        effect = Effect.NOTHING
        for name in names:
            found = self._resolver.class_member(cls, name)
            effect |= self.of_function(found) if isinstance(found, FunctionValue) else Effect.NOTHING
        return effect

    def _of_foreign(self, node: ast.Call, scope: Scope) -> Effect:
        path = self.path(node.func, scope)
        name = dotted(node.func).rpartition(".")[2] or _last_name(node.func)
        if name == "abort" or name.endswith("_or_404"):
            return Effect.RAISES
        if name == "push" and not node.args:
            return Effect.ENDS  # app.app_context().push(): another session begins
        if name == "flag_modified":
            return Effect.WRITES
        if isinstance(node.func, ast.Name):
            return self._of_named(node.func.id, path, scope)
        is_proxy = _is_in(path, _PROXIES)
        if path and not is_proxy and _is_in(path, _QUIET_LIBRARIES):
            return Effect.NOTHING
        return self._of_method(node, name, scope, is_library=bool(path) and not is_proxy)

    def _of_named(self, name: str, path: str, scope: Scope) -> Effect:
        if path:
            return self._by_path(path)
        if scope.find(name):
            return ANYTHING  # what a parameter or a variable holds
        if name in _BUILTIN_EXITS:
            return Effect.RAISES
        return Effect.WRITES if name in _BUILTIN_SETTERS else Effect.NOTHING

    def _by_path(self, path: str) -> Effect:
        if _is_in(path, _QUIET_LIBRARIES):
            return Effect.NOTHING
        name = path.rpartition(".")[2]
        return Effect.TELLS | (Effect.WRITES if _sounds_changing(name) else Effect.NOTHING)

    def _of_method(self, node: ast.Call, name: str, scope: Scope, *, is_library: bool) -> Effect:
        """A method of something that the source does not tell."""
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        if owner is not None and self._is_own_container(owner, scope):
            return Effect.NOTHING
        if any(keyword.arg == "instance" for keyword in node.keywords):
            return ANYTHING
        is_plain = is_library or is_handed_in(owner, scope)
        candidates = [] if is_plain else [each for each in self._methods.get(name, ()) if not self._is_view(each)]
        if candidates:
            effect = Effect.NOTHING
            for candidate in candidates:
                effect |= self.of_function(candidate)
            return effect
        if name in _QUIET_METHODS:
            return Effect.NOTHING
        if name in ("commit", "rollback"):
            return Effect.ENDS
        return Effect.TELLS | (Effect.WRITES if _sounds_changing(name) else Effect.NOTHING)

    def _is_view(self, value: FunctionValue) -> bool:
        """Whether it answers requests, and is called by nobody else."""
        node, scope = value.node, value.scope
        if isinstance(node, ast.Lambda):
            return False
        return self.functions(scope.module).facts(node, scope.parent or scope).is_view

    # ---- stores

    def _of_store(self, node: ast.Attribute | ast.Subscript, scope: Scope) -> Effect:
        root: ast.expr = node
        names = set()
        while isinstance(root, (ast.Attribute, ast.Subscript)):
            if isinstance(root, ast.Attribute):
                names.add(root.attr)
            root = root.value
        if names & _RESPONSE_PARTS or (isinstance(node, ast.Subscript) and self._is_own_container(node.value, scope)):
            return Effect.NOTHING
        is_form_field = isinstance(node, ast.Attribute) and node.attr in _FORM_FIELDS and len(names) > 1
        if is_form_field and isinstance(root, ast.Name) and (self._is_form(root, scope) or "form" in root.id.lower()):
            return Effect.NOTHING
        path = self.path(root, scope)
        # What g holds may be a row.
        is_of_row = path == "flask.g" and node.value is not root
        return Effect.NOTHING if path in _QUIET_STORES and not is_of_row else Effect.WRITES

    def _is_form(self, node: ast.Name, scope: Scope) -> bool:
        value = self._resolver.value(node, scope)
        if not isinstance(value, Instance):
            return False
        return any(path.startswith(_FORM_CLASSES) for path in self._resolver.ancestors(value.cls))

    def _is_own_container(self, node: ast.expr, scope: Scope) -> bool:
        """Whether a name holds a list, dictionary or response that this function has made, or one of plain values."""
        if not isinstance(node, ast.Name):
            return isinstance(node, _OWN_CONTAINERS)
        bindings = scope.bindings.get(node.id, [])
        if any(each.how is How.ANNOTATED and _is_of_plain_values(each.node) for each in bindings):
            return True
        made = [
            isinstance(each.node, _OWN_CONTAINERS)
            or (isinstance(each.node, ast.Call) and dotted(each.node.func).rpartition(".")[2] in _CONTAINER_CALLS)
            for each in bindings
        ]
        return bool(made) and all(made)

    def path(self, node: ast.AST, scope: Scope) -> str:
        """The full name of a library's thing, by the import that its first name comes from; nothing for others."""
        first, _, rest = dotted(node).partition(".")
        bindings = scope.find(first) if first else []
        paths = [each.path for each in bindings if each.how is How.IMPORTED]
        if not paths or len(paths) < len(bindings):
            return ""
        value = self._resolver.value(node, scope)
        if value is not None and not isinstance(value, (Role, External)):
            return ""
        head = paths[0]
        if value is None and not isinstance(self._resolver.value(_first(node), scope), (Role, External)):
            return ""
        return f"{head}.{rest}" if rest else head


def _of_session(method: Method, node: ast.Call, scope: Scope) -> Effect:
    if _ends(method) and not _is_nested(node):
        return Effect.ENDS
    if method.name in STATEMENTS:
        kind = kind_of_argument(node.args[0], scope) if node.args else Kind.READ
        if kind in (Kind.COMMIT, Kind.ROLLBACK, Kind.BEGIN):
            return Effect.ENDS
        return STORES if kind is Kind.WRITE else Effect.NOTHING
    return STORES if method.name in WRITES else Effect.NOTHING


def _is_of_plain_values(annotation: ast.AST | None) -> bool:
    """Whether an annotation is that of a list, set or dictionary in which no row can be: ``set[str] | None``."""
    nodes = ast.walk(annotation) if annotation is not None else ()
    names = {node.id.lower() for node in nodes if isinstance(node, ast.Name)}
    return not names.isdisjoint(_PLAIN_CONTAINERS) and names <= _PLAIN_CONTAINERS | _PLAIN_VALUES


def _functions_in(value: FunctionValue) -> Iterator[FunctionValue]:
    """The functions that a function defines."""
    for node, scope in all_nodes(value.scope):
        if isinstance(node, FUNCTION_NODES):
            yield FunctionValue(node, scope.module.scopes[node])


def _ends(method: Method) -> bool:
    return method.name in COMMITS | ROLLBACKS


def _is_nested(node: ast.Call) -> bool:
    return any(keyword.arg == "nested" for keyword in node.keywords)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a node runs: not the bodies of functions that it defines, but those of its lambdas."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return
    yield node
    for inner in ast.iter_child_nodes(node):
        yield from _running(inner)


def _sounds_changing(name: str) -> bool:
    return not _CHANGING_WORDS.isdisjoint(name.lower().split("_"))


def _is_in(path: str, names: Iterable[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in names)


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else ""


def _first(node: ast.AST) -> ast.AST:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node


def is_handed_in(node: ast.AST | None, scope: Scope) -> bool:
    """Whether an expression is a text, or comes with the request: nothing that knows a row."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    if isinstance(node, (ast.Constant, ast.JoinedStr)):
        return True
    if not isinstance(node, ast.Name):
        return False
    bindings = scope.bindings.get(node.id, [])
    if not bindings:
        return node.id == "request"
    roots = [_root(each.node) for each in bindings]
    return all(isinstance(root, ast.Constant | ast.JoinedStr) or dotted(root) in _HANDED_IN for root in roots)


def _root(node: ast.AST | None) -> ast.AST:
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node or ast.Pass()

"""Finds what a module's names are bound to: one walk through its statements."""

from __future__ import annotations

import ast
from typing import Any

from ._scopes import Binding, How, Module, Scope, ScopeNode


def bind_names(module: Module) -> None:
    """Find the scopes of a module and what is bound in each."""
    scope = Scope(module.tree, module)
    module.scopes[module.tree] = scope
    _Binder(module, scope).visit_body(module.tree.body)


class _Binder(ast.NodeVisitor):
    """Walks through one scope, and through those inside with binders of their own."""

    def __init__(self, module: Module, scope: Scope) -> None:
        self._module = module
        self._scope = scope
        self._globals: set[str] = set()
        self._nonlocals: set[str] = set()

    def visit_body(self, body: list[ast.stmt]) -> None:
        # What is declared global may be declared after the first nested block.
        for statement in body:
            self.visit(statement)

    def _bind(self, name: str, how: How, node: ast.AST | None, line: int, path: str = "") -> None:
        binding = Binding(how, self._scope, node, path, line)
        self._home(name).bind(name, binding)

    def _home(self, name: str) -> Scope:
        if name in self._globals:
            return self._module.scope
        if name in self._nonlocals:
            scope = self._scope.parent
            while scope is not None and (scope.is_class or name not in scope.bindings):
                scope = scope.parent
            return scope or self._scope
        return self._scope

    # ---- functions and classes

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._bind(node.name, How.DEFINED, node, node.lineno)
        self._visit_function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._bind(node.name, How.DEFINED, node, node.lineno)
        self._visit_function(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        scope = self._enter(node)
        inner = _Binder(self._module, scope)
        inner._bind_parameters(node.args)
        inner.visit(node.body)
        self._visit_defaults(node.args)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._bind(node.name, How.DEFINED, node, node.lineno)
        for expression in (*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords)):
            self.visit(expression)
        inner = _Binder(self._module, self._enter(node))
        inner._bind_type_parameters(node)
        inner.visit_body(node.body)

    def visit_TypeAlias(self, node: Any) -> None:
        """``type Store = Session``, of which Python 3.11 knows nothing."""
        self._bind_target(node.name, How.ASSIGNED, node.value)

    def _bind_type_parameters(self, node: ast.AST) -> None:
        """``def save[S: Session](session: S)``: a type is what its bound says."""
        for parameter in getattr(node, "type_params", ()):
            bound = getattr(parameter, "bound", None)
            how = How.ASSIGNED if bound is not None else How.OPAQUE
            self._bind(parameter.name, how, bound, parameter.lineno)

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for decorator in node.decorator_list:
            self.visit(decorator)
        self._visit_defaults(node.args)
        scope = self._enter(node)
        inner = _Binder(self._module, scope)
        inner._bind_type_parameters(node)
        inner._bind_parameters(node.args)
        if self._scope.is_class:
            inner._bind_self(node)
        inner.visit_body(node.body)

    def _enter(self, node: ScopeNode) -> Scope:
        scope = Scope(node, self._module, self._scope)
        self._module.scopes[node] = scope
        return scope

    def _visit_defaults(self, arguments: ast.arguments) -> None:
        for default in (*arguments.defaults, *arguments.kw_defaults):
            if default is not None:
                self.visit(default)

    def _bind_parameters(self, arguments: ast.arguments) -> None:
        positional = [*arguments.posonlyargs, *arguments.args]
        defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
        pairs = [*zip(positional, defaults, strict=True)]
        pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        for parameter, default in pairs:
            if parameter.annotation is not None:
                self._bind(parameter.arg, How.ANNOTATED, parameter.annotation, parameter.lineno)
            else:
                self._bind(parameter.arg, How.OPAQUE, None, parameter.lineno)
            if default is not None:
                # A default is read where the function is defined.
                outer = self._scope.parent or self._scope
                self._scope.bind(parameter.arg, Binding(How.ASSIGNED, outer, default, "", parameter.lineno))
        for parameter in filter(None, (arguments.vararg, arguments.kwarg)):
            self._bind(parameter.arg, How.OPAQUE, None, parameter.lineno)

    def _bind_self(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        positional = [*node.args.posonlyargs, *node.args.args]
        names = {decorator.id for decorator in node.decorator_list if isinstance(decorator, ast.Name)}
        if not positional or "staticmethod" in names:
            return
        name = positional[0].arg
        is_class = "classmethod" in names or node.name in ("__new__", "__init_subclass__", "__class_getitem__")
        how = How.CLASS if is_class else How.SELF
        self._scope.bindings[name] = [Binding(how, self._scope, None, "", node.lineno)]

    # ---- statements that bind

    def visit_Global(self, node: ast.Global) -> None:
        self._globals.update(node.names)

    def visit_Nonlocal(self, node: ast.Nonlocal) -> None:
        self._nonlocals.update(node.names)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self._bind_target(target, How.ASSIGNED, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._bind_target(node.target, How.ANNOTATED, node.annotation)
        if node.value is not None:
            self.visit(node.value)
            self._bind_target(node.target, How.ASSIGNED, node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.visit(node.value)
        self._bind_target(node.target, How.OPAQUE, None)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        self._bind_target(node.target, How.ASSIGNED, node.value)

    def visit_For(self, node: ast.For) -> None:
        self._bind_target(node.target, How.ITERATED, node.iter)
        self.generic_visit(node)

    def visit_AsyncFor(self, node: ast.AsyncFor) -> None:
        self._bind_target(node.target, How.ITERATED, node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._bind_target(node.target, How.ITERATED, node.iter)
        self.generic_visit(node)

    def visit_withitem(self, node: ast.withitem) -> None:
        self.visit(node.context_expr)
        if node.optional_vars is not None:
            self._bind_target(node.optional_vars, How.ENTERED, node.context_expr)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name:
            self._bind(node.name, How.OPAQUE, None, node.lineno)
        self.generic_visit(node)

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        if node.name:
            self._bind(node.name, How.OPAQUE, None, node.lineno)
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            name = alias.asname or alias.name.partition(".")[0]
            path = alias.name if alias.asname else name
            self._bind(name, How.IMPORTED, None, node.lineno, path)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = _absolute(self._module, node)
        for alias in node.names:
            if alias.name == "*":
                self._module.stars.append(base)
            else:
                self._bind(alias.asname or alias.name, How.IMPORTED, None, node.lineno, f"{base}.{alias.name}")

    def _bind_target(self, target: ast.expr, how: How, node: ast.expr | None) -> None:
        if isinstance(target, ast.Name):
            self._bind(target.id, how, node, target.lineno)
        elif isinstance(target, ast.Attribute):
            self._bind_attribute(target, how, node)
        elif isinstance(target, (ast.Tuple, ast.List)):
            self._bind_each(target.elts, how, node)
        elif isinstance(target, ast.Starred):
            self._bind_target(target.value, How.OPAQUE, None)

    def _bind_each(self, targets: list[ast.expr], how: How, node: ast.expr | None) -> None:
        is_pairwise = isinstance(node, (ast.Tuple, ast.List)) and len(node.elts) == len(targets)
        has_star = any(isinstance(target, ast.Starred) for target in targets)
        if how is How.ASSIGNED and isinstance(node, (ast.Tuple, ast.List)) and is_pairwise and not has_star:
            for target, value in zip(targets, node.elts, strict=True):
                self._bind_target(target, how, value)
            return
        for target in targets:
            self._bind_target(target, How.OPAQUE, None)

    def _bind_attribute(self, target: ast.Attribute, how: How, node: ast.expr | None) -> None:
        """``self.session = ...`` in a method binds a name of the class."""
        if not isinstance(target.value, ast.Name):
            return
        owner = self._scope.find(target.value.id)
        if any(binding.how in (How.SELF, How.CLASS) for binding in owner):
            cls = owner[0].scope.parent
            if cls is not None:
                binding = Binding(how, self._scope, node, "", target.lineno)
                cls.attributes.setdefault(target.attr, []).append(binding)


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    """The dotted name of the module that is imported from."""
    if not node.level:
        return node.module or ""
    parts = module.package.split(".") if module.package else []
    base = parts[: max(0, len(parts) - node.level + 1)]
    return ".".join([*base, *filter(None, [node.module])])

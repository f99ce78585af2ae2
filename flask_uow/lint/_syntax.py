"""What a piece of source is, by its form alone."""

from __future__ import annotations

import ast

_SHOWN = 60  # characters of a call


def dotted(node: ast.AST) -> str:
    """A chain of names as it is written; nothing for what is none."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ".".join(["", *names[::-1]]) if names else ""
    return ".".join([node.id, *names[::-1]])


def decorator_names(node: ast.AST) -> set[str]:
    """The last names of a function's decorators."""
    decorators = node.decorator_list if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else []
    return {dotted(each.func if isinstance(each, ast.Call) else each).rpartition(".")[2] for each in decorators}


def is_getattr(node: ast.Call) -> bool:
    """Whether a call is ``getattr(something, "literal")``."""
    return is_any_getattr(node) and isinstance(literal(node.args[1]), str)


def is_any_getattr(node: ast.Call) -> bool:
    """Whether a call is ``getattr(something, name)``."""
    return isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) >= 2


def literal(node: ast.AST | None) -> object:
    """What a literal says; None for anything else."""
    return node.value if isinstance(node, ast.Constant) else None


def shown(node: ast.AST) -> str:
    """A call as it is written, without its arguments and in one line."""
    if isinstance(node, ast.Call):
        text = f"{ast.unparse(node.func)}({'...' if node.args or node.keywords else ''})"
    else:
        text = ast.unparse(node)
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."

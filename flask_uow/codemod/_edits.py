"""Changes source: decorators, commits, ``try`` statements and imports, with everything else as it was.

What is to change is named by where it stands; libcst knows the formatting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider

from ._setup import NAME

_MARK = "__gone__"
Place = tuple[int, int]  # line from 1, column from 0 and in characters


@dataclass(slots=True)
class Edits:
    """What is to change in a file.

    :param decorated: the functions that get ``@transactional``.
    :param dropped: the statements that go.
    :param flushed: the commits that become flushes.
    :param unwrapped: the ``try`` statements of which the body alone stays.
    :param units: the commits that go and end a ``with transactional():`` around statements before them; how many.
    :param after: code to put after statements.
    :param imports: the imports that get the extension's name beside the others.
    :param names: what is imported from ``flask_uow``.
    """

    decorated: set[Place] = field(default_factory=set)
    dropped: set[Place] = field(default_factory=set)
    flushed: set[Place] = field(default_factory=set)
    unwrapped: set[Place] = field(default_factory=set)
    units: dict[Place, int] = field(default_factory=dict)
    after: dict[Place, str] = field(default_factory=dict)
    imports: set[Place] = field(default_factory=set)
    names: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.names or self.after)


def edit(source: bytes, edits: Edits) -> bytes:
    """The source with the changes.

    :raises libcst.ParserSyntaxError: for what libcst does not understand.
    """
    has_mark = source.startswith(b"\xef\xbb\xbf")
    wrapper = MetadataWrapper(cst.parse_module(source))
    changed = wrapper.visit(_Editor(edits))
    result = changed.with_changes(body=_with_import(changed.body, edits.names)).bytes
    return b"\xef\xbb\xbf" + result if has_mark and not result.startswith(b"\xef\xbb\xbf") else result


class _Editor(cst.CSTTransformer):
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, edits: Edits) -> None:
        super().__init__()
        self._edits = edits

    def _first_place(self, statement: cst.BaseStatement) -> Place:
        return self._place(statement.body[0] if isinstance(statement, cst.SimpleStatementLine) else statement)

    def _place(self, node: cst.CSTNode) -> Place:
        start = self.get_metadata(PositionProvider, node).start
        return start.line, start.column

    # ---- functions

    def leave_FunctionDef(self, original_node: cst.FunctionDef, updated_node: cst.FunctionDef) -> cst.FunctionDef:
        """Put ``@transactional`` next to the function."""
        if self._place(original_node) not in self._edits.decorated:
            return updated_node
        decorator = cst.Decorator(cst.Name("transactional"))
        return updated_node.with_changes(decorators=[*updated_node.decorators, decorator])

    # ---- statements

    def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.Call:
        """Make a flush of a commit."""
        function = updated_node.func
        if self._place(original_node) not in self._edits.flushed or not isinstance(function, cst.Attribute):
            return updated_node
        # What begins in the same place may be another call: get_session().commit()
        if function.attr.value != "commit":
            return updated_node
        return updated_node.with_changes(func=function.with_changes(attr=cst.Name("flush")))

    def leave_ImportFrom(self, original_node: cst.ImportFrom, updated_node: cst.ImportFrom) -> cst.ImportFrom:
        """Import the extension beside what it is made for."""
        if self._place(original_node) not in self._edits.imports or isinstance(updated_node.names, cst.ImportStar):
            return updated_node
        return _with_name(updated_node, list(updated_node.names), NAME)

    def leave_SimpleStatementLine(
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.SimpleStatementLine | cst.FlattenSentinel[cst.BaseStatement]:
        """Mark a line whose statements go: the block around it knows what to do with its comments."""
        if len(original_node.body) == 1 and self._place(original_node) in self._edits.after:
            added = cst.parse_statement(self._edits.after[self._place(original_node)])
            return cst.FlattenSentinel([updated_node, added])
        kept = self._kept(original_node.body, updated_node.body)
        return updated_node if kept is None else updated_node.with_changes(body=kept or [_gone()])

    def leave_SimpleStatementSuite(
        self, original_node: cst.SimpleStatementSuite, updated_node: cst.SimpleStatementSuite
    ) -> cst.SimpleStatementSuite:
        """Leave ``pass`` where nothing is left."""
        kept = self._kept(original_node.body, updated_node.body)
        return updated_node if kept is None else updated_node.with_changes(body=kept or [cst.Pass()])

    def _kept(
        self, original: Sequence[cst.BaseSmallStatement], updated: Sequence[cst.BaseSmallStatement]
    ) -> list[cst.BaseSmallStatement] | None:
        """What stands in a line afterwards; None if nothing changes there."""
        places = [self._place(each) for each in original]
        if not any(place in self._edits.dropped or place in self._edits.after for place in places):
            return None
        kept: list[cst.BaseSmallStatement] = []
        for place, statement in zip(places, updated, strict=True):
            if place not in self._edits.dropped:
                kept.append(statement)
            if place in self._edits.after:
                kept += _in_line(self._edits.after[place])
        if kept:
            kept[-1] = kept[-1].with_changes(semicolon=cst.MaybeSentinel.DEFAULT)
        return kept

    # ---- blocks

    def leave_Try(
        self, original_node: cst.Try, updated_node: cst.Try
    ) -> cst.Try | cst.FlattenSentinel[cst.BaseStatement]:
        """Take the body out of a ``try``."""
        if self._place(original_node) not in self._edits.unwrapped:
            return updated_node
        first, *others = updated_node.body.body
        lines = [*updated_node.leading_lines, *getattr(first, "leading_lines", ())]
        rest = [cst.EmptyLine(indent=line.indent, comment=line.comment) for line in _comments(updated_node.body)]
        statements = [first.with_changes(leading_lines=lines), *others]
        # Comments below the last statement stand below what follows then; they are few.
        below = [cst.SimpleStatementLine([_gone()], leading_lines=rest)] if rest else []
        return cst.FlattenSentinel([*statements, *below])

    def leave_IndentedBlock(
        self, original_node: cst.IndentedBlock, updated_node: cst.IndentedBlock
    ) -> cst.IndentedBlock:
        """Put units into a block, take out marked lines, keep their comments; leave ``pass`` where nothing is left."""
        counts = [self._edits.units.get(self._first_place(each), 0) for each in original_node.body]
        if any(counts):
            return updated_node.with_changes(body=_with_units(updated_node.body, counts))
        body, footer = _without_gone(updated_node.body)
        if len(body) == len(updated_node.body):
            return updated_node
        if not body:
            body = [cst.SimpleStatementLine([cst.Pass()], leading_lines=footer)]
            footer = []
        return updated_node.with_changes(body=body, footer=[*footer, *updated_node.footer])

    def leave_Module(self, original_node: cst.Module, updated_node: cst.Module) -> cst.Module:
        """Take out marked lines of the module itself."""
        body, footer = _without_gone(updated_node.body)
        return updated_node.with_changes(body=body, footer=[*footer, *updated_node.footer])


def _with_units(statements: Sequence[cst.BaseStatement], counts: Sequence[int]) -> list[cst.BaseStatement]:
    """The statements with a unit around those before each commit.

    :param counts: for each statement how many before it the unit has that it ends, if it is such a commit.
    """
    body: list[cst.BaseStatement] = []
    for statement, count in zip(statements, counts, strict=True):
        if not count:
            body.append(statement)
            continue
        first, *others = body[-count:]
        unit = cst.With(
            leading_lines=_leading(first),
            items=[cst.WithItem(cst.Call(cst.Name("transactional")))],
            body=cst.IndentedBlock([first.with_changes(leading_lines=[]), *others], footer=_comments_of(statement)),
        )
        body[-count:] = [unit]
    return body


def _in_line(code: str) -> Sequence[cst.BaseSmallStatement]:
    """Code as it stands beside other statements."""
    line = cst.parse_statement(code)
    return line.body if isinstance(line, cst.SimpleStatementLine) else ()


def _gone() -> cst.Expr:
    """What marks a line that goes. An empty one would go at once, and its comments with it."""
    return cst.Expr(cst.Name(_MARK))


def _is_gone(statement: cst.BaseStatement) -> bool:
    inner = statement.body[0] if isinstance(statement, cst.SimpleStatementLine) and statement.body else None
    return isinstance(inner, cst.Expr) and isinstance(inner.value, cst.Name) and inner.value.value == _MARK


def _without_gone(
    statements: Sequence[cst.BaseStatement],
) -> tuple[list[cst.BaseStatement], list[cst.EmptyLine]]:
    """The statements without marked lines, whose comments go to the next one, or to the end."""
    kept: list[cst.BaseStatement] = []
    carried: list[cst.EmptyLine] = []
    for statement in statements:
        if _is_gone(statement):
            carried += _lines_of(statement)
        elif carried:
            lines = _joined(carried, list(getattr(statement, "leading_lines", ())))
            kept.append(statement.with_changes(leading_lines=lines))
            carried = []
        else:
            kept.append(statement)
    return kept, [line for line in carried if line.comment]


def _lines_of(statement: cst.BaseStatement) -> list[cst.EmptyLine]:
    """The lines above a statement, and its own comment as a line."""
    if not isinstance(statement, cst.SimpleStatementLine):
        return []
    own = statement.trailing_whitespace.comment
    return [*statement.leading_lines, *([cst.EmptyLine(comment=own)] if own else [])]


def _comments_of(statement: cst.BaseStatement) -> list[cst.EmptyLine]:
    return [line for line in _lines_of(statement) if line.comment]


def _comments(body: cst.BaseSuite) -> list[cst.EmptyLine]:
    """The comments below a block's last statement."""
    return [line for line in body.footer if line.comment] if isinstance(body, cst.IndentedBlock) else []


def _joined(above: list[cst.EmptyLine], below: list[cst.EmptyLine]) -> list[cst.EmptyLine]:
    """Lines above a statement, of which some were above one that is gone: no two gaps where one was."""
    if above and below and not above[-1].comment and not below[0].comment:
        above = above[:-1]
    return [*above, *below]


def _with_import(body: Sequence[cst.BaseStatement], names: set[str]) -> Sequence[cst.BaseStatement]:
    if not names:
        return body
    head = _head(body)
    for index in head:
        statement = body[index]
        found = statement.body[0] if isinstance(statement, cst.SimpleStatementLine) else None
        if isinstance(found, cst.ImportFrom) and _root(statement) == "flask_uow" and _is_plain(found):
            line = statement.with_changes(body=[_with_names(found, names)])
            return [*body[:index], line, *body[index + 1 :]]
    added = cst.parse_statement(f"from flask_uow import {', '.join(sorted(names))}")
    place = _place_of_import(body, head)
    rest = list(body[place:])
    if not head and rest:
        rest[0] = rest[0].with_changes(leading_lines=[cst.EmptyLine(indent=False), *_leading(rest[0])])
    return [*body[:place], added, *rest]


def _with_names(node: cst.ImportFrom, names: set[str]) -> cst.ImportFrom:
    """An import from ``flask_uow`` of more names."""
    if isinstance(node.names, cst.ImportStar):
        return node
    kept = [each.with_changes(comma=cst.MaybeSentinel.DEFAULT) for each in node.names]
    known = {each.evaluated_name for each in kept if each.asname is None}
    added = [cst.ImportAlias(cst.Name(name)) for name in names - known]
    return node.with_changes(names=sorted([*kept, *added], key=lambda each: each.evaluated_name))


def _with_name(node: cst.ImportFrom, names: list[cst.ImportAlias], name: str) -> cst.ImportFrom:
    """An import with one more name, in the names' order if they have one, and set as they are."""
    known = [each.evaluated_name for each in names]
    index = sum(each < name for each in known) if known == sorted(known) else len(known)
    space = node.lpar.whitespace_after if node.lpar is not None else None
    is_spread = isinstance(space, cst.ParenthesizedWhitespace)
    comma = cst.Comma(whitespace_after=_bare(space) if is_spread else cst.SimpleWhitespace(" "))
    added = cst.ImportAlias(cst.Name(name), comma=comma)
    if index < len(names):
        return node.with_changes(names=[*names[:index], added, *names[index:]])
    *others, last = names
    if is_spread and node.rpar is not None:
        return _with_last_line(node, node.rpar, names, added)
    return node.with_changes(names=[*others, last.with_changes(comma=comma), added.with_changes(comma=last.comma)])


def _with_last_line(
    node: cst.ImportFrom, rpar: cst.RightParen, names: list[cst.ImportAlias], added: cst.ImportAlias
) -> cst.ImportFrom:
    """An import with one more name in a last line of its own; what stands behind the name before it stays there."""
    *others, last = names
    has_comma = isinstance(last.comma, cst.Comma)
    behind = last.comma.whitespace_after if isinstance(last.comma, cst.Comma) else rpar.whitespace_before
    line = cst.ensure_type(added.comma, cst.Comma).whitespace_after
    if isinstance(behind, cst.ParenthesizedWhitespace):
        line = behind.with_changes(last_line=cst.ensure_type(line, cst.ParenthesizedWhitespace).last_line)
    above = [*others, last.with_changes(comma=cst.Comma(whitespace_after=line))]
    if has_comma:
        return node.with_changes(names=[*above, added.with_changes(comma=cst.Comma(whitespace_after=_bare(behind)))])
    end = rpar.with_changes(whitespace_before=_bare(behind))
    return node.with_changes(names=[*above, added.with_changes(comma=cst.MaybeSentinel.DEFAULT)], rpar=end)


def _bare(space: cst.BaseParenthesizableWhitespace | None) -> cst.BaseParenthesizableWhitespace:
    """Space between names without the comments in it."""
    if not isinstance(space, cst.ParenthesizedWhitespace):
        return cst.SimpleWhitespace("")
    line = space.first_line.with_changes(whitespace=cst.SimpleWhitespace(""), comment=None)
    return space.with_changes(first_line=line, empty_lines=[])


def _head(body: Sequence[cst.BaseStatement]) -> list[int]:
    """Where the imports are that a module begins with; those of Flask, if calls stand before them.

    What is called before Flask is imported, ``monkey.patch_all()`` say, is to be called before this package is, too.
    """
    runs: list[list[int]] = [[]]
    for index, statement in enumerate(body):
        if not isinstance(statement, cst.SimpleStatementLine) or len(statement.body) != 1:
            break
        inner = statement.body[0]
        if isinstance(inner, (cst.Import, cst.ImportFrom)):
            runs[-1].append(index)
        elif not (isinstance(inner, cst.Expr) and isinstance(inner.value, cst.BaseString)):
            runs.append([])
    of_flask = (run for run in runs if any(_is_of_flask(_root(body[index])) for index in run))
    return next(of_flask, runs[0])


def _is_of_flask(root: str) -> bool:
    return root == "flask" or root.startswith("flask_")


def _place_of_import(body: Sequence[cst.BaseStatement], head: list[int]) -> int:
    """Below the last import of Flask or of an extension, else below the others of libraries."""
    roots = {index: _root(statement) for index, statement in enumerate(body[: max(head, default=-1) + 1])}
    of_flask = [index for index in head if _is_of_flask(roots[index])]
    if of_flask:
        earlier = [index for index in of_flask if roots[index] <= "flask_uow"]
        return earlier[-1] + 1 if earlier else of_flask[0]
    absolute = [index for index in head if roots[index]]
    if absolute:
        return absolute[-1] + 1
    if head:
        return head[0]
    has_docstring = bool(body) and isinstance(body[0], cst.SimpleStatementLine) and _is_text(body[0])
    return int(has_docstring)


def _root(statement: cst.BaseStatement) -> str:
    """The first name of what is imported; nothing for what lies beside the module, or is no import."""
    node = statement.body[0] if isinstance(statement, cst.SimpleStatementLine) and statement.body else None
    module: cst.CSTNode | None = None
    if isinstance(node, cst.ImportFrom) and not node.relative:
        module = node.module
    elif isinstance(node, cst.Import):
        module = node.names[0].name
    while isinstance(module, cst.Attribute):
        module = module.value
    return module.value if isinstance(module, cst.Name) else ""


def _is_plain(node: cst.ImportFrom) -> bool:
    return (
        node.lpar is None and not isinstance(node.names, cst.ImportStar) and not isinstance(node.module, cst.Attribute)
    )


def _is_text(statement: cst.SimpleStatementLine) -> bool:
    return isinstance(statement.body[0], cst.Expr) and isinstance(statement.body[0].value, cst.BaseString)


def _leading(statement: cst.BaseStatement) -> Sequence[cst.EmptyLine]:
    lines: Sequence[cst.EmptyLine] = getattr(statement, "leading_lines", ())
    return lines

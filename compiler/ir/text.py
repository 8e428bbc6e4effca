"""The IR as text: printed for people, parsed back to an equal graph; fields and types drive both."""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import NoReturn, Union, get_args, get_origin, get_type_hints

from compiler.ir.graph import Graph, Node
from compiler.ir.lexer import Token, TokenKind, bare_or_quoted, tokens, word_or_quoted
from compiler.ir.ops import OPS, Op, Parameters
from compiler.ir.types import Dim, DType, TensorType
from compiler.ir.values import Param
from hwmodel.errors import CompileError, Loc


def print_graph(graph: Graph) -> str:
    """The graph without its arrays, one line per node.

    Every field is written out, so that a stored text keeps its meaning when a default changes.
    """
    lines = [_print_node(node, graph.types[node.name]) for node in graph.nodes]
    body = "\n".join(f"  {line}" for line in (*lines, f"return %{bare_or_quoted(graph.output)}"))
    return f"graph {json.dumps(graph.name)} {{\n{body}\n}}\n"


def parse_graph(text: str, parameters: Parameters, *, file: str = "<text>") -> Graph:
    """The graph of a text; a node without `: type` is not compared, without `loc` it is from this text.

    Raises: CompileError for every fault of the text, and those of `Graph`.
    """
    parser = _Parser(list(tokens(text, file)))
    name, nodes, output = parser.graph()
    graph = Graph(name, nodes, output, parameters)
    for printed in parser.types:
        if printed.type != graph.types[printed.node]:
            raise CompileError(
                f"%{printed.node} is written as {_print_type(printed.type)}, its op gives "
                f"{_print_type(graph.types[printed.node])}",
                printed.loc,
                hint="correct the type or leave it out",
            )
    return graph


def op_name(op: type) -> str:
    """The word for an op or a value class: its name in snake_case."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", op.__name__).lower()


def _print_node(node: Node, value: TensorType) -> str:
    inputs = [f"%{bare_or_quoted(name)}" for name in node.inputs]
    call = f"{op_name(type(node.op))}({', '.join(inputs + _print_fields(node.op))})"
    line = f":{node.loc.line}" if node.loc.line else ""
    loc = f"loc({json.dumps(node.loc.file)}{line})"
    return f"%{bare_or_quoted(node.name)} = {call} : {_print_type(value)} {loc}"


def _print_fields(owner: object) -> list[str]:
    return [f"{name}={_print_value(getattr(owner, name))}" for name in _hints(type(owner))]


def _print_value(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case Param():
            return f"@{bare_or_quoted(value.name)}"
        case str():
            return word_or_quoted(value)
        case tuple():
            return f"({', '.join(_print_value(item) for item in value)}{',' * (len(value) == 1)})"
    assert is_dataclass(value), f"no text for {value!r}"
    return f"{op_name(type(value))}({', '.join(_print_fields(value))})"


def _print_type(value: TensorType) -> str:
    dims = (
        axis if size == axis else f"{axis}={_print_value(size)}"
        for axis, size in zip(value.axes, value.shape, strict=True)
    )
    return f"{value.dtype}[{', '.join(dims)}]"


@cache
def _hints(owner: type) -> dict[str, object]:
    """Field names and their types, in order."""
    assert is_dataclass(owner)
    hints = get_type_hints(owner)
    return {item.name: hints[item.name] for item in fields(owner)}


def _required(owner: type) -> list[str]:
    assert is_dataclass(owner)
    return [f.name for f in fields(owner) if f.default is MISSING and f.default_factory is MISSING]


def _alternatives(hint: object) -> tuple[object, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _describe(hint: object) -> str:
    """What a field takes, for an error message."""
    match hint:
        case type() if issubclass(hint, StrEnum):
            return f"one of {', '.join(hint)}"
        case type() if is_dataclass(hint) and hint is not Param:
            return f"{op_name(hint)}(...)"
        case type():
            return _WORDS[hint]
    if get_origin(hint) is tuple:
        items = ["..." if item is Ellipsis else _describe(item) for item in get_args(hint)]
        return f"({', '.join(items)})"
    return " or ".join(_describe(option) for option in _alternatives(hint))


_WORDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a word or string",
    NoneType: "none",
    Param: "an @parameter",
}


@dataclass(frozen=True, slots=True)
class _PrintedType:
    node: str
    type: TensorType
    loc: Loc


@dataclass(slots=True)
class _Parser:
    """Recursive descent; what a field may hold is read from its type."""

    rest: list[Token]
    types: list[_PrintedType] = field(default_factory=list)
    at: int = 0

    @property
    def ahead(self) -> Token:
        return self.rest[self.at]

    def next(self) -> Token:
        token = self.ahead
        self.at += token.kind is not TokenKind.END
        return token

    def found(self, wanted: str, *, hint: str = "") -> NoReturn:
        raise CompileError(f"found {self.ahead}, expected {wanted}", self.ahead.loc, hint=hint)

    def take(self, kind: TokenKind) -> Token:
        return self.next() if self.ahead.kind is kind else self.found(kind)

    def accept(self, source: str) -> bool:
        """Consume a mark or word if it is the next token."""
        hit = self.ahead.source == source
        self.at += hit
        return hit

    def expect(self, *sources: str) -> None:
        for source in sources:
            if not self.accept(source):
                self.found(f"`{source}`")

    def graph(self) -> tuple[str, tuple[Node, ...], str]:
        self.expect("graph")
        name = self.take(TokenKind.STRING).meaning
        self.expect("{")
        nodes: dict[str, Node] = {}
        while self.ahead.kind is TokenKind.VALUE:
            first = self.next()
            if first.meaning in nodes:
                raise CompileError(f"{first} is defined twice", first.loc)
            nodes[first.meaning] = self.node(first, nodes)
        if self.ahead.source != "return":
            self.found("a %value or `return`")
        self.next()
        output = self.use(nodes)
        self.expect("}")
        if self.ahead.kind is not TokenKind.END:
            self.found(TokenKind.END)
        return name, tuple(nodes.values()), output

    def use(self, nodes: dict[str, Node]) -> str:
        token = self.take(TokenKind.VALUE)
        if token.meaning not in nodes:
            hint = "nodes stand in order of execution"
            raise CompileError(f"{token} is not defined before this line", token.loc, hint=hint)
        return token.meaning

    def node(self, name: Token, nodes: dict[str, Node]) -> Node:
        self.expect("=")
        if self.ahead.source not in _OPS:
            self.found("an op", hint=f"the ops are {', '.join(_OPS)}")
        kind = _OPS[self.next().source]
        self.expect("(")
        inputs = []
        while self.ahead.kind is TokenKind.VALUE:
            inputs.append(self.use(nodes))
            if not self.accept(","):
                break
        op = self.instance(kind, name)
        assert isinstance(op, Op)
        if self.accept(":"):
            loc = self.ahead.loc
            self.types.append(_PrintedType(name.meaning, self.tensor_type(), loc))
        return Node(name.meaning, op, tuple(inputs), self.loc(name.loc))

    def instance(self, owner: type, place: Token) -> object:
        """The fields of an op or value class, up to the closing parenthesis."""
        hints, got, what = _hints(owner), dict[str, object](), op_name(owner)
        while not self.accept(")"):
            if self.ahead.kind is TokenKind.WORD and self.ahead.source not in hints:
                allowed = f"its fields are {', '.join(hints)}" if hints else "it has no fields"
                raise CompileError(f"{what} has no field {self.ahead}", self.ahead.loc, hint=allowed)
            token = self.take(TokenKind.WORD)
            if token.source in got:
                raise CompileError(f"field {token} is given twice", token.loc)
            self.expect("=")
            got[token.source] = self.value(hints[token.source], f"{what}'s {token.source}")
            if self.ahead.source not in (",", ")"):
                self.found("`,` or `)`")
            self.accept(",")
        missing = [name for name in _required(owner) if name not in got]
        if missing:
            wanted = "; ".join(f"{name}: {_describe(hints[name])}" for name in missing)
            raise CompileError(f"{place}: {what} lacks {', '.join(missing)}", place.loc, hint=wanted)
        return owner(**got)

    def value(self, hint: object, what: str) -> object:
        """One value of the field's type."""
        for option in _alternatives(hint):
            if _starts(option, self.ahead):
                return self.one(option, what)
        self.found(f"{_describe(hint)} for {what}")

    def one(self, hint: object, what: str) -> object:
        if get_origin(hint) is tuple:
            return self.sequence(hint, what)
        token = self.next()
        match hint:
            case type() if issubclass(hint, StrEnum):
                return hint(token.meaning)
            case type() if hint is bool:
                return token.source == "true"
            case type() if hint in (int, float):
                return _number(token, what, is_float=hint is float)
            case type() if hint is str:
                return token.meaning
            case type() if hint is Param:
                return Param(token.meaning)
            case type() if is_dataclass(hint):
                self.expect("(")
                return self.instance(hint, token)
        return None

    def sequence(self, hint: object, what: str) -> tuple[object, ...]:
        first = self.next()
        items = []
        options = get_args(hint)
        repeats = options[-1] is Ellipsis
        while not self.accept(")"):
            option = options[0 if repeats else min(len(items), len(options) - 1)]
            items.append(self.value(option, f"an item of {what}"))
            if self.ahead.source not in (",", ")"):
                self.found("`,` or `)`")
            self.accept(",")
        if not repeats and len(items) != len(options):
            raise CompileError(f"{what} has {len(items)} items, expected {_describe(hint)}", first.loc)
        return tuple(items)

    def tensor_type(self) -> TensorType:
        if self.ahead.source not in set(DType):
            self.found(f"{_describe(DType)}, then [axes]")
        dtype = DType(self.next().source)
        self.expect("[")
        shape: list[Dim] = []
        axes = ""
        while not self.accept("]"):
            axis = self.take(TokenKind.WORD)
            if axis.source not in tuple("TNCHW"):
                raise CompileError(f"{axis} is not an axis", axis.loc, hint="axes are T, N, C, H, W")
            axes += axis.source
            size = self.value(Dim, f"axis {axis.source}") if self.accept("=") else axis.source
            assert isinstance(size, int | str)
            shape.append(size)
            if self.ahead.source not in (",", "]"):
                self.found("`,` or `]`")
            self.accept(",")
        return TensorType(tuple(shape), dtype, axes)

    def loc(self, default: Loc) -> Loc:
        if not self.accept("loc"):
            return default
        self.expect("(")
        file = self.take(TokenKind.STRING).meaning
        line = _number(self.take(TokenKind.NUMBER), "the line", is_float=False) if self.accept(":") else 0
        self.expect(")")
        return Loc(file, int(line))


def _starts(hint: object, token: Token) -> bool:
    """Whether a value of that type may begin with the token."""
    match hint:
        case type() if issubclass(hint, StrEnum):
            return token.kind in (TokenKind.WORD, TokenKind.STRING) and token.meaning in set(hint)
        case type() if hint is bool:
            return token.source in ("true", "false")
        case type() if hint in (int, float):
            return token.kind is TokenKind.NUMBER
        case type() if hint is str:
            return token.kind in (TokenKind.WORD, TokenKind.STRING)
        case type() if hint is Param:
            return token.kind is TokenKind.PARAM
        case type() if hint is NoneType:
            return token.source == "none"
        case type():
            return token.source == op_name(hint)
    return token.source == "("


def _number(token: Token, what: str, *, is_float: bool) -> int | float:
    """A finite number; an integer stays one where a float may stand."""
    try:
        number = int(token.source)
    except ValueError:
        number = None
    try:
        value = float(token.source)
    except ValueError:
        value = None
    if is_float and value is not None and abs(value) < float("inf"):
        return value if number is None else number
    if not is_float and number is not None:
        return number
    wanted = "a finite number" if is_float else "an integer"
    raise CompileError(f"{token} is not {wanted}, as {what} must be", token.loc)


_OPS = {op_name(op): op for op in OPS}

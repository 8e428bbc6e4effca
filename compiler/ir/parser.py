"""Recursive descent over the tokens of the IR's text form; what a field may hold is read from its type."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn, get_args, get_origin

from compiler.ir.fields import (
    alternatives,
    begins,
    class_word,
    describe,
    field_types,
    read_integer,
    required_fields,
    scalar,
)
from compiler.ir.graph import Node
from compiler.ir.lexer import Token, TokenKind
from compiler.ir.ops import OPS, Op
from compiler.ir.types import Dim, DType, TensorType
from hwmodel.errors import CompileError, Loc

_OPS = {class_word(op): op for op in OPS}


@dataclass(frozen=True, slots=True)
class WrittenType:
    """The type that the text states for a node."""

    node: str
    type: TensorType
    loc: Loc


@dataclass(slots=True)
class Parser:
    """One parse: the tokens, the position, and what was found besides the nodes."""

    rest: list[Token]
    at: int = 0
    types: list[WrittenType] = field(default_factory=list)

    def graph(self) -> tuple[str, tuple[Node, ...], str]:
        """Name, nodes and output of the graph that is the whole text.

        Raises: CompileError at the first fault.
        """
        self._expect("graph")
        name = self._take(TokenKind.STRING).meaning
        self._expect("{")
        nodes: dict[str, Node] = {}
        while self._ahead.kind is TokenKind.VALUE:
            first = self._next()
            if first.meaning in nodes:
                raise CompileError(f"{first} is defined twice", first.loc)
            nodes[first.meaning] = self._node(first, nodes)
        if not self._accept("return"):
            self._fail("a %value or `return`")
        output = self._use(nodes)
        self._expect("}")
        self._take(TokenKind.END)
        return name, tuple(nodes.values()), output

    @property
    def _ahead(self) -> Token:
        return self.rest[self.at]

    def _next(self) -> Token:
        token = self._ahead
        self.at += token.kind is not TokenKind.END
        return token

    def _fail(self, wanted: str, hint: str = "") -> NoReturn:
        raise CompileError(f"found {self._ahead}, expected {wanted}", self._ahead.loc, hint=hint)

    def _take(self, kind: TokenKind) -> Token:
        return self._next() if self._ahead.kind is kind else self._fail(kind)

    def _accept(self, source: str) -> bool:
        """Consume a mark or word if it is next."""
        is_next = self._ahead.source == source
        self.at += is_next
        return is_next

    def _expect(self, source: str) -> None:
        if not self._accept(source):
            self._fail(f"`{source}`")

    def _separator(self, close: str) -> None:
        if not self._accept(",") and self._ahead.source != close:
            self._fail(f"`,` or `{close}`")

    def _use(self, nodes: dict[str, Node]) -> str:
        token = self._take(TokenKind.VALUE)
        if token.meaning not in nodes:
            hint = "nodes stand in order of execution"
            raise CompileError(f"{token} is not defined before this line", token.loc, hint=hint)
        return token.meaning

    def _node(self, name: Token, nodes: dict[str, Node]) -> Node:
        self._expect("=")
        if self._ahead.source not in _OPS:
            self._fail("an op", f"the ops are {', '.join(_OPS)}")
        kind = _OPS[self._next().source]
        self._expect("(")
        inputs = []
        while self._ahead.kind is TokenKind.VALUE:
            inputs.append(self._use(nodes))
            self._separator(")")
        op = self._fields(kind, name)
        assert isinstance(op, Op)
        if self._accept(":"):
            loc = self._ahead.loc
            self.types.append(WrittenType(name.meaning, self._tensor_type(), loc))
        return Node(name.meaning, op, tuple(inputs), self._loc(name.loc))

    def _fields(self, owner: type, place: Token) -> object:
        """An op or value class from its fields, up to the closing parenthesis."""
        types, what = field_types(owner), class_word(owner)
        got: dict[str, object] = {}
        while not self._accept(")"):
            token = self._take(TokenKind.WORD)
            if token.source not in types:
                allowed = f"its fields are {', '.join(types)}" if types else "it has no fields"
                raise CompileError(f"{what} has no field {token}", token.loc, hint=allowed)
            if token.source in got:
                raise CompileError(f"field {token} of {what} is given twice", token.loc)
            self._expect("=")
            got[token.source] = self._value(types[token.source], f"{what}'s {token.source}")
            self._separator(")")
        missing = [name for name in required_fields(owner) if name not in got]
        if missing:
            hint = "; ".join(f"{name} is {describe(types[name])}" for name in missing)
            raise CompileError(f"{place}: {what} lacks {', '.join(missing)}", place.loc, hint=hint)
        return owner(**got)

    def _value(self, hint: object, what: str) -> object:
        for option in alternatives(hint):
            if not begins(option, self._ahead):
                continue
            if get_origin(option) is tuple:
                return self._tuple(option, what)
            token, plain = self._next(), scalar(option)
            if plain is not None:
                return plain.read(token)
            assert isinstance(option, type)
            self._expect("(")
            return self._fields(option, token)
        self._fail(f"{describe(hint)} as {what}")

    def _tuple(self, hint: object, what: str) -> tuple[object, ...]:
        first, options = self._next(), get_args(hint)
        repeats = options[-1] is Ellipsis
        items: list[object] = []
        while not self._accept(")"):
            option = options[0 if repeats else min(len(items), len(options) - 1)]
            items.append(self._value(option, f"an item of {what}"))
            self._separator(")")
        if not repeats and len(items) != len(options):
            raise CompileError(f"{what} has {len(items)} items, expected {describe(hint)}", first.loc)
        return tuple(items)

    def _tensor_type(self) -> TensorType:
        dtype = self._value(DType, "the element type")
        assert isinstance(dtype, DType)
        self._expect("[")
        axes: list[str] = []
        shape: list[Dim] = []
        while not self._accept("]"):
            if self._ahead.source not in tuple("TNCHW"):
                self._fail("an axis: T, N, C, H or W")
            axis = self._next().source
            size = self._value(Dim, f"axis {axis}") if self._accept("=") else axis
            assert isinstance(size, int | str)
            axes.append(axis)
            shape.append(size)
            self._separator("]")
        return TensorType(tuple(shape), dtype, "".join(axes))

    def _loc(self, default: Loc) -> Loc:
        if not self._accept("loc"):
            return default
        self._expect("(")
        file = self._take(TokenKind.STRING).meaning
        line = read_integer(self._take(TokenKind.NUMBER)) if self._accept(":") else 0
        self._expect(")")
        return Loc(file, line)

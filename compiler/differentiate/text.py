"""Training graphs as text, one line per step with its stage, then what is kept and what a run gives."""

from __future__ import annotations

import json

from compiler.differentiate.steps import Forward, Step
from compiler.differentiate.training_graph import Format, TrainingGraph, TrainingNode, Value
from compiler.ir.fields import class_word
from compiler.ir.lexer import bare_or_quoted


def print_training(training: TrainingGraph) -> str:
    """The training graph without its arrays; a parameter that a step reads stands as @NAME."""
    loss = training.loss or f"none, {_name(f'd.{training.graph.output}')} is given"
    head = (
        f"training {json.dumps(training.graph.name)}, loss {loss}, {training.statistics} statistics, {training.policy}"
    )
    lines = [_node(node) for node in training.nodes]
    lines += [f"keep {_name(value.name)} : {_stored(value)}" for value in training.kept]
    lines.append(f"return {', '.join(_name(name) for name in training.outputs)}")
    return "\n".join((f"{head} {{", *(f"  {line}" for line in lines), "}\n"))


def _node(node: TrainingNode) -> str:
    results = ", ".join(f"{_name(value.name)} : {_kind(value)}" for value in node.results)
    arguments = [_name(name) for name in node.inputs]
    arguments += [f"@{bare_or_quoted(name)}" for name in dict.fromkeys(node.step.parameters)]
    return f"{node.stage} {results} = {_word(node.step)}({', '.join(arguments)})"


def _word(step: Step) -> str:
    return class_word(type(step.op if isinstance(step, Forward) else step))


def _kind(value: Value) -> str:
    return _stored(value) if value.format is Format.INDEX else str(value.type)


def _stored(value: Value) -> str:
    """The type with the format for its element type."""
    return f"{value.format}{str(value.type).removeprefix(value.type.dtype)}"


def _name(name: str) -> str:
    return f"%{bare_or_quoted(name)}"

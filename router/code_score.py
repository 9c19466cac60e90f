"""Owns how two answers that are Python code are compared: the same syntax tree, or not.

Must not know tasks or settings, and never runs what it reads. Comments, spacing, quotes and docstrings do not matter;
names do: two programs that do the same in other words are not equal here, and the verdict errs to that side.
"""

import ast
import re
import warnings
from collections.abc import Iterator

LONGEST = 50_000  # characters; longer answers are not read
_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_DOCUMENTED = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# What the parser may raise: of deep nesting the last two.
_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)


def code_agreement(teacher: str, candidate: str) -> float:
    """1 for equal trees, else 0; what does not parse, or holds no code, equals nothing."""
    wanted, given = tree(teacher), tree(candidate)
    if wanted is None or given is None:
        return 0.0
    return float(all(one == other for one, other in zip(_nodes(wanted), _nodes(given), strict=False)))


def tree(answer: str) -> ast.Module | None:
    """The module that an answer is: its fenced blocks one after the other, or all of it; None for what is no code."""
    code = "\n".join(_FENCE.findall(answer)) or answer
    if len(code) > LONGEST:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of escapes that will be errors one day: not ours to mend.
            module = ast.parse(code)
    except _UNREADABLE:
        return None
    return module if module.body else None


def is_program(answer: str) -> bool:
    """Whether an answer is code for sure: a word or a sum would parse as well."""
    module = tree(answer)
    return module is not None and any(not isinstance(statement, ast.Expr) for statement in module.body)


def _nodes(root: ast.AST) -> Iterator[object]:
    """What a tree consists of, in one order, with its shape; a stack, as code may nest deeper than calls can."""
    stack: list[object] = [root]
    while stack:
        item = stack.pop()
        if isinstance(item, ast.AST):
            fields = [(name, _without_docstring(item, name, value)) for name, value in ast.iter_fields(item)]
            yield type(item).__name__, len(fields)
            stack.extend(value for name, value in fields if name != "kind")  # "kind" is the u of u"text".
        elif isinstance(item, list):
            yield "list", len(item)
            stack.extend(item)
        else:
            yield type(item), item  # 1 is neither 1.0 nor True here.
    yield "end"


def _without_docstring(node: ast.AST, name: str, value: object) -> object:
    if name != "body" or not isinstance(node, _DOCUMENTED) or ast.get_docstring(node, clean=False) is None:
        return value
    return node.body[1:] or [ast.Pass()]

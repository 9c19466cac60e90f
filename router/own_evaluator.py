"""Owns evaluators that the operator wrote: loading "package.module:function", and refusing what is no verdict.

Runs where verdicts are reached, never in a worker. Must not know what is compared. A function that raises, or returns
what is no number in [0, 1], has judged nothing: that is said, and is never taken for disagreement.
"""

import importlib
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from proxy.errors import BadInput
from router.said import Said


def own_evaluator(name: str) -> Callable[[Mapping[str, Any], Said, Said], float]:
    """The function of that name, each of its verdicts checked; BadInput names it and says what is wrong."""
    function = _load(name)

    def scored(request: Mapping[str, Any], teacher: Said, candidate: Said) -> float:
        try:
            verdict = function(request, teacher, candidate)
        except Exception as error:  # Somebody else's code may raise anything, and none of it is a verdict.
            raise BadInput(f"evaluator {name} raised {_in_a_line(error)}: mend it, it judged nothing") from error
        if not isinstance(verdict, Real) or not 0 <= float(verdict) <= 1:  # NaN is not in between either.
            raise BadInput(f"evaluator {name} returned {verdict!r:.80}: it must return a number in [0, 1]")
        return float(verdict)

    return scored


def _load(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name, None)
    except Exception as error:  # As above: a module may do anything when it is imported.
        raise BadInput(
            f"evaluator {name}: {module_name} cannot be imported ({_in_a_line(error)}): write package.module:function, "
            "and put the package on PYTHONPATH"
        ) from error
    if not callable(function):
        raise BadInput(f"evaluator {name}: {module_name} has no function {function_name!r}: name one it has")
    return function  # type: ignore[no-any-return]


def _in_a_line(error: Exception) -> str:
    said = str(error).splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__

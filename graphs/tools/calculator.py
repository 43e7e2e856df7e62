"""Arithmetic without `eval`."""

import math

from langchain_core.tools import ToolException, tool
from simpleeval import DEFAULT_FUNCTIONS, InvalidExpression, SimpleEval

_MAX_CHARS = 300  # long enough for any sum a model writes; parsing stays in microseconds
_MAX_DIGITS = 60
_FUNCTIONS = {
    name: DEFAULT_FUNCTIONS[name] for name in ("int", "float")
} | {
    "abs": abs, "round": round, "min": min, "max": max, "sqrt": math.sqrt, "log": math.log, "log10": math.log10,
    "exp": math.exp, "sin": math.sin, "cos": math.cos, "tan": math.tan, "floor": math.floor, "ceil": math.ceil,
}  # fmt: skip
_NAMES = {"pi": math.pi, "e": math.e}


@tool
def calculator(expression: str) -> str:
    """Work out an arithmetic expression, for example `(3 + 4) * 2` or `sqrt(2) ** 3`. Numbers only."""
    if len(expression) > _MAX_CHARS:
        raise ToolException(f"The expression is longer than {_MAX_CHARS} characters.")
    try:
        value = SimpleEval(functions=_FUNCTIONS, names=_NAMES).eval(expression.replace("^", "**").strip())
    except (
        InvalidExpression,
        ArithmeticError,
        ValueError,
        TypeError,
        SyntaxError,
        RecursionError,
        MemoryError,
    ) as error:
        raise ToolException(f"Cannot work that out: {type(error).__name__}.") from error
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ToolException("The expression is not arithmetic.")
    if isinstance(value, int) and value.bit_length() > _MAX_DIGITS * 4:
        value = float(value) if value.bit_length() < 1_000 else math.inf
    return f"{value:.15g}" if isinstance(value, float) else str(value)


calculator.handle_tool_error = True  # the model is told, and may try again

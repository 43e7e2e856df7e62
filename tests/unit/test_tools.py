"""The built-in tools do what they say and nothing else."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
import time_machine

from graphs.tools.calculator import calculator
from graphs.tools.clock import clock


def calculate(expression: str) -> str:
    call = {"type": "tool_call", "id": "1", "name": "calculator", "args": {"expression": expression}}
    return str(calculator.invoke(call).content)


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("6*7", "42"),
        ("(3 + 4) * 2", "14"),
        ("2^10", "1024"),
        ("sqrt(2) ** 2", "2"),
        ("1/4", "0.25"),
        ("0.1 + 0.2", "0.3"),
        ("round(pi, 2)", "3.14"),
        ("max(1, 2, 3)", "3"),
    ],
)
def test_arithmetic_is_worked_out(expression: str, result: str) -> None:
    assert calculate(expression) == result


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "().__class__.__bases__[0].__subclasses__()",
        "open('/etc/passwd').read()",
        "'a' * 10**9",
        "9**9**9**9",
        "1 << 10**9",
        "[x for x in range(10**9)]",
        "1/0",
        "lambda: 1",
        "1 if",
        "",
        "(" * 250,
        "1+" * 400 + "1",
        "True",
        "'text'",
    ],
)
def test_what_is_not_arithmetic_is_refused_in_words(expression: str) -> None:
    answer = calculate(expression)
    assert answer.startswith(("Cannot work that out", "The expression is"))


@time_machine.travel(datetime(2026, 11, 20, 12, 30, tzinfo=ZoneInfo("UTC")), tick=False)
@pytest.mark.parametrize(
    ("timezone", "told"),
    [("UTC", "Friday 2026-11-20 12:30:00 UTC"), ("Europe/Paris", "Friday 2026-11-20 13:30:00 CET")],
)
def test_the_clock_tells_the_time_of_a_zone(timezone: str, told: str) -> None:
    assert clock.invoke({"timezone": timezone}) == told


@pytest.mark.parametrize("timezone", ["Mars/Olympus", "../../etc/passwd", "", "\x00"])
def test_an_unknown_zone_is_said_to_be_unknown(timezone: str) -> None:
    call = {"type": "tool_call", "id": "1", "name": "clock", "args": {"timezone": timezone}}
    assert "no time zone" in str(clock.invoke(call).content)

"""What the embedded model reads out of a question: calls, arguments, the fields of a schema."""

import time
from typing import Any

import pytest

from services.question_reading import Reading, arguments_for, asked_call, instance_of, wanted_keys


def tool(*required: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(required or properties)}
    return {"name": "tool", "parameters": schema}


TEXT, WHOLE, NUMBER, FLAG = ({"type": name} for name in ("string", "integer", "number", "boolean"))
CITY, SUM, NONE = tool(city=TEXT), tool(a=WHOLE, b=WHOLE), {"name": "none"}


@pytest.mark.parametrize(
    ("question", "arguments"),
    [
        ("What is double_it(3)?", {"a": 3, "b": 0}),
        ("double_it(3, 4) please", {"a": 3, "b": 4}),
        ("double_it(b=4, a=3) please", {"a": 3, "b": 4}),
        ('double_it({"a": 1, "b": 2})', {"a": 1, "b": 2}),
        ("double_it()", {"a": 0, "b": 0}),
        ("double_it(1, 2, 3, 4)", {"a": 1, "b": 2}),
    ],
)
def test_a_call_that_is_written_out_is_made(question: str, arguments: dict[str, Any]) -> None:
    assert asked_call(question, {"other": CITY, "double_it": SUM}) == ("double_it", arguments)


@pytest.mark.parametrize(
    ("question", "city"),
    [
        ("What is the weather in San Francisco, CA?", "San Francisco, CA"),
        ("the weather at 'san sebastián'", "san sebastián"),
        ("Weather, please. City: Oslo", "Oslo"),
        ("Tell me the weather in lyon.", "lyon"),
        ("weather in “東京”?", "東京"),
    ],
)
def test_a_tool_is_meant_when_its_name_is_said_and_its_arguments_are_there(question: str, city: str) -> None:
    assert asked_call(question, {"current_time": NONE, "getWeather": CITY}) == ("getWeather", {"city": city})


@pytest.mark.parametrize("question", ["hello", "Weather?", "What is it like in Paris?", "", "weather(", "x" * 100_000])
def test_no_tool_is_meant_by_other_questions(question: str) -> None:
    assert asked_call(question, {"get_weather": CITY, "the_tool": NONE, "": NONE}) is None


def test_a_handoff_goes_to_the_one_who_is_named() -> None:
    tools = {"transfer_to_english_agent": NONE, "transfer_to_spanish_agent": NONE}
    assert asked_call("Answer me in Spanish", tools) == ("transfer_to_spanish_agent", {})


@pytest.mark.parametrize(
    ("schema", "question", "arguments"),
    [
        (tool(customer_name=TEXT), "Create a customer named '你好啊集团' (a group)", {"customer_name": "你好啊集团"}),
        (tool(name=TEXT, age=WHOLE), "My name is Ada, age 36.", {"name": "Ada", "age": 36}),
        (tool(name=TEXT), "somebody called Grace Hopper came", {"name": "Grace Hopper"}),
        (tool(query=TEXT), "Who was Ada?", {"query": "Who was Ada?"}),
        (tool(a=WHOLE, b=NUMBER), "between -3 and 4.5", {"a": -3, "b": 4.5}),
        (tool(n={"type": "integer", "maximum": 10}), "of 200 take 7", {"n": 7}),
        (tool(unit={"enum": ["celsius", "fahrenheit"]}), "in Fahrenheit, please", {"unit": "fahrenheit"}),
        (tool("city", city=TEXT, days=WHOLE), "in Rome", {"city": "Rome"}),
        (tool("city", city=TEXT, days=WHOLE), "in Rome, days: 3", {"city": "Rome", "days": 3}),
        (tool(loud=FLAG), "loud: yes", {"loud": True}),
        (tool(loud=FLAG, a=WHOLE, s=TEXT), "hello", {"loud": False, "a": 0, "s": "offline"}),
        (tool(when={"type": ["string", "null"], "format": "date"}), "'soon'", {"when": "offline"}),
        (NONE, "anything", {}),
    ],
)  # fmt: skip
def test_arguments_are_read_from_the_question(schema: Any, question: str, arguments: dict[str, Any]) -> None:
    assert arguments_for(schema, question) == arguments


def test_nested_objects_are_filled_too() -> None:
    schema = {
        "type": "object",
        "properties": {"person": {"$ref": "#/$defs/Person"}, "kind": {"const": "visit"}},
        "required": ["person", "kind"],
        "$defs": {
            "Person": {"type": "object", "properties": {"name": TEXT, "age": WHOLE}, "required": ["name", "age"]}
        },
    }
    filled = instance_of(schema, Reading('The name is "Ada", she is 36.'))
    assert filled == {"person": {"name": "Ada", "age": 36}, "kind": "visit"}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "object", "properties": {"a": {"type": "integer", "minimum": 3}}, "required": ["a"]}, {"a": 3}),
        ({"type": "integer", "exclusiveMinimum": 3}, 4),
        ({"enum": ["x", "y"]}, "x"),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, [False, False]),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, None),
        ({"$ref": "#/$defs/A", "$defs": {"A": {"const": 7}}}, 7),
        ({"type": "string", "minLength": 10}, "offline..."),
        ({"$ref": "#"}, None),
    ],
)
def test_the_plainest_instance_fits_its_schema(schema: dict[str, object], value: object) -> None:
    assert instance_of(schema) == value


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": [1]},
        {"type": "object", "required": "a"},
        {"type": "object", "required": [{}], "properties": {"a": {}}},
        {"type": "integer", "minimum": "x"},
        {"type": "integer", "exclusiveMinimum": []},
        {"type": "string", "minLength": "x"},
        {"type": "string", "enum": {"a": 1}},
        {"type": []},
        {"type": {"a": 1}},
        {"type": [[]]},
        {"type": "array", "minItems": "x"},
        {"anyOf": {"a": 1}},
    ],
)
def test_a_schema_that_is_none_is_refused(schema: dict[str, Any]) -> None:
    inside = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    for one in (schema, inside):
        with pytest.raises(ValueError, match=r"is no|names"):
            instance_of(one)
        with pytest.raises(ValueError, match=r"is no|names"):
            arguments_for({"parameters": one}, "a: 3, '4' in Rome")


def test_a_schema_that_grows_for_ever_is_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        instance_of({"type": "object", "properties": {f"p{number}": {"$ref": "#"} for number in range(30)}})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "minLength": 1e300, "maxLength": -1},
        {"type": "array", "minItems": -3, "items": []},
        {"type": "object", "required": None, "properties": None},
        {"$ref": {"a": 1}},
        {"$ref": "#/properties/a/b/c"},
        {"type": "object", "properties": {"": TEXT, "__": TEXT, "(": TEXT, "日本": TEXT, "a" * 10_000: TEXT}},
        [],
        None,
    ],
)
def test_an_odd_schema_is_filled_as_far_as_it_goes(schema: Any) -> None:
    for question in ("a: 3 '4' in Rome", "a is ( " * 100):
        instance_of(schema, Reading(question))
        instance_of({"type": "object", "properties": {"a": schema}, "required": ["a"]}, Reading(question))


def test_a_wide_schema_and_a_question_without_end_are_soon_done() -> None:
    fields: dict[str, Any] = {f"p{number}": TEXT for number in range(900)}
    fields |= {f"p_{number}": WHOLE for number in range(900)}
    wide = {"type": "object", "properties": fields, "required": list(fields)}
    begun = time.process_time()
    for question in ("p1 " * 100_000, "p1" + " " * 100_000, "'" * 50_000, "«" * 50_000, "in A " * 50_000, "(" * 50_000):
        instance_of(wide, Reading(question))
        asked_call(question, {f"p{number}": {"parameters": wide} for number in range(20)})
    assert time.process_time() - begun < 5, "ten times what it needs"


def test_wanted_keys_are_those_that_are_quoted() -> None:
    assert wanted_keys("JSON with 'setup' and `punchline` keys, 'setup' first") == ["setup", "punchline"]
    assert wanted_keys("say 'hello'") == []

"""What a question says, read by rules: which tool it asks for, and which of its words fill a JSON schema.

It is how the embedded model (`services/llm_providers/offline.py`) pretends to understand. Nothing is learnt and nothing
is known of any tool beforehand: the rules look at names, types, numbers, quotation marks and capital letters.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import orjson

T = TypeVar("T")

_MAX_DEPTH = 8
_MAX_LOOKS = 50  # properties that are looked for by their names in one question
_MAX_TEXT = 200
_MAX_VALUES = 2_000  # in one answer
_MAX_READ = 4_000  # letters of a question that are looked at
_QUOTED = re.compile(
    r'"(?P<a>[^"\n]{1,200})"|“(?P<b>[^”\n]{1,200})”|«(?P<c>[^»\n]{1,200})»|`(?P<d>[^`\n]{1,200})`'
    r"|(?<!\w)'(?P<e>[^'\n]{1,200})'(?!\w)"
)
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w])")
_NAMED = re.compile(r"\b(?:named|called)\s+((?:[^\W\d_a-z][\w'’-]*)(?:\s+[^\W\d_a-z][\w'’-]*)*)")
_ABOUT = r"\b(?:in|at|for|about|from|of|near|on|to)\s+"
_PLACE = re.compile(_ABOUT + r"([A-Z][\w'’-]*(?:,?\s+[A-Z][\w'’-]*)*)")
_SUBJECT = re.compile(_ABOUT + r"(?:a\s+|an\s+|the\s+)?([^,.;:?!\n]{1,80})[^\n]{0,2}$", re.MULTILINE)
_KEYS = re.compile(r"\b(?:keys?|fields?|propert(?:y|ies))\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+")
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+")
#: Words in a tool's name that say nothing about what it is for.
_IDLE_WORDS = frozenset(
    {"a", "agent", "an", "and", "ask", "by", "call", "create", "current", "do", "fetch", "find", "for", "from"}
    | {"function", "get", "handoff", "in", "list", "lookup", "make", "my", "new", "of", "on", "query", "read", "run"}
    | {"set", "show", "the", "to", "tool", "transfer", "up", "use", "with"}
)
#: Properties that take the question as it stands.
_WHOLE = frozenset({"input", "message", "prompt", "query", "question", "request", "search", "task", "text", "topic"})


class Reading:
    """One question. Each number and each quotation in it fills one property, in the order in which they stand."""

    def __init__(self, question: str) -> None:
        self.question = question[:_MAX_READ]
        self._lower = self.question.lower()
        self._looks = _MAX_LOOKS
        self._quotations = [_quotation(found) for found in _QUOTED.finditer(self.question)]
        self._numbers = _NUMBER.findall(self.question)
        self._subject_sought = False

    def named(self, name: str, schema: Mapping[str, Any]) -> Any:
        """The value that is said to be that property's (`age: 7`, `name is Ada`, `customer 'Ada'`); else None."""
        parts = _PART.findall(name)
        kind = _kind(schema)
        if not parts or parts[0].lower() not in self._lower or self._looks < 1:
            return None
        self._looks -= 1
        words = r"[\s_-]?".join(map(re.escape, parts))
        link = r"\s{0,3}(?::|=|\bis\b|\bare\b|\bof\b|\bas\b|\bto\b)?\s{0,3}"
        if kind in ("integer", "number"):
            pattern = rf"\b{words}\b{link}(-?\d+(?:\.\d+)?)(?!\w)"
        elif kind == "boolean":
            pattern = rf"\b{words}\b{link}(true|false|yes|no)\b"
        elif kind == "string":
            pattern = rf"\b{words}\b{link}(?:{_QUOTED.pattern})"
            if found := re.search(pattern, self.question, re.IGNORECASE):
                text = _quotation(found)
                if text in self._quotations:
                    self._quotations.remove(text)
                return _cut(text, schema)
            pattern = rf"\b{words}\b\s{{0,3}}(?::|=|\bis\b)\s{{0,3}}([^,.;?!\n]+(?:[.][^\s,.;?!]+)*)"
        else:
            return None
        found = re.search(pattern, self.question, re.IGNORECASE)
        value = None if found is None else _typed(found[1].strip(), schema)
        if found is not None and value is not None and found[1] in self._numbers:
            self._numbers.remove(found[1])
        return value

    def guessed(self, name: str, schema: Mapping[str, Any]) -> Any:
        """What else may be meant for that property; None when there is nothing."""
        if choices := [one for one in _list(schema, "enum") if isinstance(one, str) and one]:
            said = set(_said(self.question))
            return next((one for one in choices if said.issuperset(_said(one))), None)
        kind = _kind(schema)
        if kind in ("integer", "number"):
            for place, number in enumerate(self._numbers):
                value = _typed(number, schema)
                if value is not None:
                    del self._numbers[place]
                    return value
            return None
        return self._text(name, schema) if kind == "string" else None

    def _text(self, name: str, schema: Mapping[str, Any]) -> str | None:
        parts = [part.lower() for part in _PART.findall(name)]
        if parts and parts[-1] in ("name", "title") and (found := _NAMED.search(self.question)):
            return _cut(found[1], schema)
        if self._quotations:
            return _cut(self._quotations.pop(0), schema)
        if parts and parts[-1] in _WHOLE:
            return _cut(self.question.strip(), schema) or None
        if self._subject_sought:
            return None
        self._subject_sought = True
        found = _PLACE.search(self.question) or _SUBJECT.search(self.question)
        return None if found is None else _cut(found[1].strip(), schema)


# -- tools --


def asked_call(question: str, tools: Mapping[str, Mapping[str, Any]]) -> tuple[str, dict[str, Any]] | None:
    """The tool that a question asks for by writing its call, `name(3)`, or in words: "the weather in Paris".

    Args:
        tools: functions as OpenAI's wire describes them, by name.

    Raises:
        ValueError: as `instance_of`.
    """
    question = question[:_MAX_READ]
    for name, tool in tools.items():
        if f"{name}(" not in question:
            continue
        if found := re.search(rf"(?<!\w){re.escape(name)}\(([^()]*)\)", question):
            return name, _written(found[1], tool)
    said = set(_said(question))
    for name, tool in tools.items():
        words = [word for word in _said(name) if word not in _IDLE_WORDS]
        if words and said.issuperset(words):
            arguments, missing = _arguments(tool, question)
            if not missing:
                return name, arguments
    return None


def arguments_for(tool: Mapping[str, Any], question: str) -> dict[str, Any]:
    """Arguments for a tool that must be called: from the question where it has them, else the plainest that fit.

    Raises:
        ValueError: as `instance_of`.
    """
    return _arguments(tool, question)[0]


def _arguments(tool: Mapping[str, Any], question: str) -> tuple[dict[str, Any], list[str]]:
    """And the required ones that the question does not have."""
    schema = _object(tool, "parameters")
    missing: list[str] = []
    made = instance_of(schema, Reading(question), missing)
    return (made if isinstance(made, dict) else {}), missing


def _written(text: str, tool: Mapping[str, Any]) -> dict[str, Any]:
    """What stands between the brackets of a call: JSON, `name=value`, or values in the order of the properties."""
    schema = _object(tool, "parameters")
    fields = _object(schema, "properties")
    text = text.strip()
    if text.startswith("{"):
        read = _json(text)
        if isinstance(read, dict):
            return read
    made: dict[str, Any] = {}
    free = list(fields)
    for part in re.findall(r"(?:\"[^\"]*\"|'[^']*'|\[[^\]]*\]|[^,])+", text) if text else ():
        name, sign, value = part.partition("=")
        name = name.strip()
        if not sign or name not in fields:
            if not free:
                break
            name, value = free[0], part
        if name in free:
            free.remove(name)
        made[name] = _value(value.strip(), fields[name])
    plain = instance_of(schema)
    return {**(plain if isinstance(plain, dict) else {}), **made}


def _value(text: str, schema: Any) -> Any:
    bare = text.strip("\"'")
    typed = _typed(bare, schema) if isinstance(schema, dict) else None
    if typed is not None:
        return typed
    read = _json(text)
    return bare if read is None else read


# -- schemas --


def instance_of(schema: Any, reading: Reading | None = None, missing: list[str] | None = None) -> Any:
    """A value that fits a JSON schema: what `reading` says, else defaults, first choices, required fields only.

    Args:
        missing: is given the names of required values that the question does not have.

    Raises:
        ValueError: it is no JSON schema, or what fits it is too large.
    """
    return _Filling(schema, reading, missing).value(schema)


class _Filling:
    """One schema being filled. How deep and how wide it may go is limited: schemas may name themselves."""

    def __init__(self, root: Any, reading: Reading | None, missing: list[str] | None) -> None:
        self._root = root
        self._reading = reading
        self._missing = missing
        self._left = _MAX_VALUES

    def value(self, schema: Any, name: str = "", depth: int = 0) -> Any:
        """The value of one property (`name`), or of the whole."""
        self._left -= 1
        if self._left < 0:
            raise ValueError("too large")
        if not isinstance(schema, dict) or depth > _MAX_DEPTH:
            return None
        if "$ref" in schema:
            return self.value(_pointed(schema["$ref"], self._root), name, depth + 1)
        if "const" in schema:
            return schema["const"]
        said = self._said(schema, name)
        if said is not None:
            return said
        if "default" in schema:
            return schema["default"]
        for key in ("anyOf", "oneOf", "allOf"):
            if choices := _list(schema, key):
                return self.value(choices[0], name, depth + 1)
        kind = _kind(schema)
        if kind == "object" or "properties" in schema:
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, name, depth)
        if self._missing is not None and name and kind in ("string", "integer", "number"):
            self._missing.append(name)
        return _plainest(schema, kind)

    def _said(self, schema: dict[str, Any], name: str) -> Any:
        if self._reading is None or not name:
            return None
        value = self._reading.named(name, schema)
        return self._reading.guessed(name, schema) if value is None and "default" not in schema else value

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        fields = _object(schema, "properties")
        required = _list(schema, "required")
        if not all(isinstance(name, str) for name in required):
            raise ValueError("required names something that is no name")
        if not required and self._missing is None:
            required = list(fields)
        made = {name: self.value(fields.get(name, {}), name, depth + 1) for name in required}
        for name, field in fields.items():  # the others only where they are named
            if self._reading is not None and name not in made and isinstance(field, dict):
                value = self._reading.named(name, field)
                if value is not None:
                    made[name] = value
        return made

    def _array(self, schema: dict[str, Any], name: str, depth: int) -> list[Any]:
        count = int(_limit(schema, "minItems") or 0)
        return [self.value(schema.get("items", {}), name, depth + 1) for _ in range(max(0, min(count, 16)))]


def _plainest(schema: dict[str, Any], kind: Any) -> Any:
    if choices := _list(schema, "enum"):
        return choices[0]
    if kind in ("integer", "number"):
        least, above = _limit(schema, "minimum"), _limit(schema, "exclusiveMinimum")
        return least if least is not None else above + 1 if above is not None else 0
    if kind == "boolean":
        return False
    return "offline".ljust(int(min(_limit(schema, "minLength") or 0, 1_000)), ".") if kind == "string" else None


def wanted_keys(question: str) -> list[str]:
    """The keys that an answer in JSON shall have, where a question quotes them: "with 'a' and 'b' keys"."""
    question = question[:_MAX_READ]
    quoted = [_quotation(found) for found in _QUOTED.finditer(question)]
    return list(dict.fromkeys(quoted))[:64] if _KEYS.search(question) else []


# -- small things --


def _said(text: str) -> list[str]:
    """Its words, in small letters, each also without the `s` of a plural or a genitive."""
    words = [part.lower() for word in _WORD.findall(text) for part in (_PART.findall(word) or [word])]
    return [word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in words]


def _quotation(found: re.Match[str]) -> str:
    return next((text.strip() for text in found.groupdict().values() if text is not None), "")


def _pointed(reference: Any, root: Any) -> Any:
    """What a `$ref` within the same schema points to."""
    target = root
    for part in str(reference).removeprefix("#").strip("/").split("/"):
        if part:
            target = target.get(part) if isinstance(target, dict) else None
    return target


def _object(schema: Mapping[str, Any], key: str) -> dict[str, Any]:
    return _checked(schema, key, dict) or {}


def _list(schema: Mapping[str, Any], key: str) -> list[Any]:
    return _checked(schema, key, list) or []


def _limit(schema: Mapping[str, Any], key: str) -> float | None:
    found = schema.get(key)
    if found is not None and (not isinstance(found, int | float) or isinstance(found, bool)):
        raise ValueError(f"{key} is no number")
    return found


def _checked(schema: Mapping[str, Any], key: str, kind: type[T]) -> T | None:
    found = schema.get(key)
    if found is not None and not isinstance(found, kind):
        raise ValueError(f"{key} is no {kind.__name__}")
    return found


def _kind(schema: Mapping[str, Any]) -> str | None:
    kind = schema.get("type")
    kinds = kind if isinstance(kind, list) else [kind]
    if not kinds or not all(one is None or isinstance(one, str) for one in kinds):
        raise ValueError("type is no name of a type")
    return next((one for one in kinds if one != "null"), kinds[0])


def _typed(text: str, schema: Mapping[str, Any]) -> Any:
    """That text as a value of the schema's type; None when it is none."""
    kind = _kind(schema)
    if kind == "string":
        return _cut(text, schema)
    if kind == "boolean":
        return {"true": True, "yes": True, "false": False, "no": False}.get(text.lower())
    if kind not in ("integer", "number") or not _NUMBER.fullmatch(text) or len(text) > 20:
        return None
    value = float(text) if "." in text or kind == "number" else int(text)
    if kind == "integer" and value != int(value):
        return None
    value = int(value) if value == int(value) else value
    return value if _within(value, schema) else None


def _within(value: float, schema: Mapping[str, Any]) -> bool:
    least, most = _limit(schema, "minimum"), _limit(schema, "maximum")
    above, below = _limit(schema, "exclusiveMinimum"), _limit(schema, "exclusiveMaximum")
    return (
        (least is None or value >= least)
        and (most is None or value <= most)
        and (above is None or value > above)
        and (below is None or value < below)
        and ("enum" not in schema or value in _list(schema, "enum"))
    )


def _cut(text: str, schema: Mapping[str, Any]) -> str | None:
    """The text, if the schema allows it, shortened where it is too long."""
    text = text[: int(min(_MAX_TEXT, max(0, _limit(schema, "maxLength") or _MAX_TEXT)))]
    if "enum" in schema:
        choices = (one for one in _list(schema, "enum") if isinstance(one, str))
        return next((one for one in choices if one.lower() == text.lower()), None)
    if "pattern" in schema or "format" in schema or len(text) < (_limit(schema, "minLength") or 0):
        return None  # whether it fits is not known here
    return text or None


def _json(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None

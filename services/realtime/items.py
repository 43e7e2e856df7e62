"""The items of a conversation in their order, and what they say in the words of chat completions."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from uuid_utils import uuid7

from domain.errors import Conflict, InvalidRequest, NotFound
from services.agent_messages import new_message_id
from services.realtime.schemas import CallItem, CallOutputItem, InputSound, ItemSchema
from services.wire_messages import WireMessage

MOST_ITEMS = 2_000
MOST_CHARS = 4_000_000  # of all items of one conversation: what one socket may hold of the house's memory


def item_id() -> str:
    """An id for an item."""
    return f"item_{uuid7().hex[:26]}"  # OpenAI's are at most 32 characters


#: Of messages that the house says itself, to ask for an approval: the record has the approval instead.
ASKED_BY_THE_HOUSE = "ask_"


def asking_id() -> str:
    """An id for such a message."""
    return f"{ASKED_BY_THE_HOUSE}{uuid7().hex[:28]}"


@dataclass(slots=True)
class Item:
    """One item.

    Attributes:
        shown: as clients see it.
        heard: it is part of a run, and so of the record; until then it is the client's to change.
        record_id: of its message in the record.
        marks: of something spoken: up to which character it is said at which millisecond.
    """

    id: str
    shown: dict[str, Any]
    heard: bool = False
    record_id: str = field(default_factory=new_message_id)
    size: int = 0
    marks: list[tuple[int, int]] = field(default_factory=list)

    @property
    def spoken_ms(self) -> int:
        """How long it is to be heard."""
        return self.marks[-1][1] if self.marks else 0

    def cut(self, at_ms: int) -> str:
        """Forget what was spoken after that; gives the words that were heard, in proportion within a sentence."""
        part = self.shown["content"][0]
        said, from_ms, length = 0, 0, len(part["transcript"])
        kept: list[tuple[int, int]] = []
        for until, until_ms in self.marks:
            if at_ms < until_ms:
                share = said + (until - said) * (at_ms - from_ms) // max(1, until_ms - from_ms)
                length = max(said, part["transcript"].rfind(" ", said, share + 1))
                kept.append((length, at_ms))
                break
            kept.append((until, until_ms))
            said, from_ms, length = until, until_ms, until
        self.marks = kept
        text: str = part["transcript"][:length].rstrip()
        part["transcript"] = text
        return text


class Items:
    """All items, by order and by id."""

    def __init__(self) -> None:
        self._order: list[str] = []
        self._by_id: dict[str, Item] = {}
        self._size = 0
        #: Calls that were asked for, here or before in the stored session.
        self.calls: set[str] = set()

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Item]:
        return (self._by_id[one] for one in self._order)

    @property
    def last(self) -> str | None:
        """The id of the last one."""
        return self._order[-1] if self._order else None

    def get(self, wanted: str, param: str = "item_id") -> Item:
        """The item of that id.

        Raises:
            NotFound: there is none.
        """
        item = self._by_id.get(wanted)
        if item is None:
            raise NotFound(f"There is no item '{wanted}' in this conversation.", code="item_not_found", param=param)
        return item

    def add(self, item: Item) -> str | None:
        """Put it at the end; gives the id of the one before it."""
        before = self.last
        self._insert(len(self._order), item)
        return before

    def create(self, item: Item, after: str | None) -> str | None:
        """Put it after another ("root": at the beginning; None: at the end); gives the id of the one before it.

        Raises:
            NotFound: there is no such other.
            Conflict: its id is taken, or what comes after that place was answered already.
            InvalidRequest: there are too many, or it answers a call that nobody asked for.
        """
        if item.id in self._by_id:
            raise Conflict(f"There is an item '{item.id}' already.", code="item_exists", param="item.id")
        if len(self._order) >= MOST_ITEMS or self._size + _size_of(item.shown) > MOST_CHARS:
            raise InvalidRequest("The conversation holds too much; delete items first.", code="conversation_full")
        shown = item.shown
        if shown["type"] == "function_call_output" and shown["call_id"] not in self.calls:
            raise NotFound(
                "Nobody has asked for a call of that id.", code="invalid_tool_call_output", param="item.call_id"
            )
        place = len(self._order)
        if after == "root":
            place = 0
        elif after is not None:
            place = self._order.index(self.get(after, "previous_item_id").id) + 1
        if any(self._by_id[one].heard for one in self._order[place:]):
            raise Conflict(
                "What comes after that place was answered already; a new item can only follow it.",
                code="item_order_unsupported",
                param="previous_item_id",
            )
        self._insert(place, item)
        return self._order[place - 1] if place else None

    def remove(self, item: Item) -> None:
        """Take it out."""
        self._order.remove(item.id)
        del self._by_id[item.id]
        self._size -= item.size

    def unheard(self) -> list[Item]:
        """Those that no run knows yet."""
        return [item for item in self if not item.heard]

    def _insert(self, place: int, item: Item) -> None:
        item.size = _size_of(item.shown)
        self._size += item.size
        self._order.insert(place, item.id)
        self._by_id[item.id] = item
        if item.shown["type"] == "function_call":
            self.calls.add(item.shown["call_id"])


def item_of(sent: ItemSchema) -> Item:
    """A new item as a client has sent it.

    Raises:
        InvalidRequest: sound without words; nobody here listens to it.
    """
    shown: dict[str, Any] = {"id": sent.id or item_id(), "object": "realtime.item", "type": sent.type}
    shown["status"] = "completed"
    if isinstance(sent, CallItem):
        shown |= {"name": sent.name, "call_id": sent.call_id or f"call_{uuid7().hex[:24]}", "arguments": sent.arguments}
    elif isinstance(sent, CallOutputItem):
        shown |= {"call_id": sent.call_id, "output": sent.output}
    else:
        for place, part in enumerate(sent.content):
            if isinstance(part, InputSound) and part.transcript is None:
                raise InvalidRequest(
                    "Sound in an item needs its transcript; say it through input_audio_buffer instead.",
                    code="audio_not_available",
                    param=f"item.content.{place}.transcript",
                )
        content = [part.model_dump(exclude_none=True, exclude={"audio"}) for part in sent.content]
        shown |= {"role": sent.role, "content": content}
    return Item(shown["id"], shown)


def wire_messages(shown: Iterable[Mapping[str, Any]]) -> list[tuple[int, WireMessage]]:
    """Items as messages of chat completions, each with the place of its first item; calls in a row are one."""
    messages: list[tuple[int, WireMessage]] = []
    calling = False
    for place, item in enumerate(shown):
        if item["type"] == "function_call":
            function = {"name": item["name"], "arguments": item["arguments"] or "{}"}
            call = {"id": item["call_id"], "type": "function", "function": function}
            if calling:
                messages[-1][1]["tool_calls"].append(call)
            else:
                messages.append((place, {"role": "assistant", "content": None, "tool_calls": [call]}))
            calling = True
            continue
        calling = False
        if item["type"] == "function_call_output":
            message: WireMessage = {"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]}
        else:
            message = {"role": item["role"], "content": _content(item["content"])}
        messages.append((place, message))
    return messages


def _content(parts: list[dict[str, Any]]) -> Any:
    if any(part["type"] == "input_image" for part in parts):
        return [_part(part) for part in parts]
    return "".join(part.get("text") or part.get("transcript") or "" for part in parts)


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "input_image":
        return {"type": "image_url", "image_url": {"url": part["image_url"], "detail": part.get("detail") or "auto"}}
    return {"type": "text", "text": part.get("text") or part.get("transcript") or ""}


def _size_of(shown: Mapping[str, Any]) -> int:
    size = 200 + len(shown.get("arguments") or "") + len(shown.get("output") or "")
    for part in shown.get("content") or ():
        size += sum(len(value) for value in part.values() if isinstance(value, str))
    return size

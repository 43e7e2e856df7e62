"""What a call plays: at the pace of its clock, told when it begins and ends, and known when it is cut."""

import base64
from typing import Any

from services.realtime.playback import MOST_SECONDS, Cut, Playback

FRAME = 960


def delta(sound: bytes, response: str = "r1", item: str = "i1") -> dict[str, Any]:
    return {
        "type": "response.output_audio.delta",
        "response_id": response,
        "item_id": item,
        "content_index": 0,
        "delta": base64.b64encode(sound).decode(),
    }


def playback() -> tuple[Playback, list[tuple[str, str]]]:
    told: list[tuple[str, str]] = []
    return Playback(lambda event: told.append((event["type"].rpartition(".")[2], event["response_id"]))), told


def test_nothing_is_silence_and_no_event() -> None:
    played, told = playback()
    assert played.take() == bytes(FRAME)
    assert told == []


def test_sound_is_played_whole_and_its_beginning_and_end_are_told() -> None:
    played, told = playback()
    played.add(delta(b"\1" * 1_000))
    played.add(delta(b"\2" * 1_000))
    frames = [played.take() for _ in range(3)]
    assert b"".join(frames) == b"\1" * 1_000 + b"\2" * 1_000 + bytes(880)
    assert told == [("started", "r1")]
    played.take()
    assert told == [("started", "r1")]  # more may come
    played.finish("r1")
    played.take()
    assert told == [("started", "r1"), ("stopped", "r1")]


def test_a_second_response_begins_when_the_first_is_over() -> None:
    played, told = playback()
    played.add(delta(b"\1" * 100))
    played.finish("r1")
    played.add(delta(b"\2" * 100, "r2", "i2"))
    played.finish("r2")
    for _ in range(4):
        played.take()
    assert told == [("started", "r1"), ("stopped", "r1"), ("started", "r2"), ("stopped", "r2")]


def test_what_is_cleared_tells_how_much_was_heard_and_late_sound_is_dropped() -> None:
    played, told = playback()
    played.add(delta(b"\1" * FRAME * 10))
    played.add(delta(b"\2" * FRAME, item="i2"))
    for _ in range(3):
        played.take()
    assert played.clear() == [Cut("i1", 0, 60), Cut("i2", 0, 0)]
    assert told == [("started", "r1"), ("cleared", "r1")]
    played.add(delta(b"\3" * FRAME))
    assert played.take() == bytes(FRAME)
    played.add(delta(b"\4" * FRAME, "r2"))
    assert played.take() == b"\4" * FRAME


def test_clearing_what_was_heard_to_its_end_cuts_nothing() -> None:
    played, told = playback()
    played.add(delta(b"\1" * FRAME))
    played.take()
    assert played.clear() == []
    assert told == [("started", "r1"), ("cleared", "r1")]
    assert played.clear() == []
    assert len(told) == 2


def test_rubbish_in_place_of_sound_is_not_played() -> None:
    played, _ = playback()
    played.add({**delta(b""), "delta": "no base64!"})
    assert played.seconds == 0


def test_the_source_is_paused_while_too_much_waits() -> None:
    played, _ = playback()
    played.add(delta(bytes(int(MOST_SECONDS * 48_000) + FRAME)))
    assert not played.room.is_set()
    played.take()
    assert played.room.is_set()

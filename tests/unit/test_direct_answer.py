"""Frames of a provider's stream as a direct call hands them on: whatever way they are read, the outcome is the same."""

from typing import Any

import orjson
import pytest

from core.http import ProviderClient
from services.direct_answer import Block, DirectAnswer

CLIENT = ProviderClient("fake", "http://127.0.0.1:1", quiet=True)
WORDS = ["Hel", "lo", ' "you"', "\n\nnew\\", "\\", "é😀", "", ",", '","', "{}", "data: x", "\u2028end"]


def frame(content: str | None, *, finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    delta = {} if content is None else {"content": content}
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    return b"data: " + orjson.dumps({"id": "c1", "model": "m", "choices": [choice], **more}) + b"\n\n"


def stream(words: list[str]) -> bytes:
    usage = {"prompt_tokens": 3, "completion_tokens": len(words), "total_tokens": 3 + len(words)}
    told = b"data: " + orjson.dumps({"id": "c1", "model": "m", "choices": [], "usage": usage}) + b"\n\n"
    return b"".join(map(frame, words)) + frame(None, finish="stop") + told + b"data: [DONE]\n\n"


def read(answer: DirectAnswer, raws: list[bytes]) -> bytes:
    return b"".join(answer.read(CLIENT, raw).sse() for raw in raws)


def lines_of(raw: bytes) -> list[bytes]:
    return raw.splitlines(keepends=True)


@pytest.mark.parametrize("cut", ["whole", "frames", "lines", "halves"])
def test_every_word_arrives_whatever_way_the_stream_is_cut(cut: str) -> None:
    raw = stream(WORDS)
    frames = [one + b"\n\n" for one in raw.split(b"\n\n")[:-1]]
    raws = {
        "whole": [raw],
        "frames": frames,
        "lines": lines_of(raw),
        "halves": [b"".join(frames[:5]), b"".join(frames[5:9]), b"".join(frames[9:])],
    }[cut]
    answer = DirectAnswer({})
    told = read(answer, raws) + answer.ending().sse()
    assert told == b"".join(map(frame, WORDS)) + frame(None, finish="stop") + b"data: [DONE]\n\n"
    assert answer.texts == WORDS
    assert (answer.failure, answer.finish, answer.done) == (None, "stop", True)
    assert answer.usage is not None
    assert answer.usage.output_tokens == len(WORDS)


def test_frames_read_together_tell_their_events() -> None:
    answer = DirectAnswer({})
    block = answer.read(CLIENT, b"".join(map(frame, WORDS)))
    assert [event["choices"][0]["delta"]["content"] for event in block.events] == WORDS
    assert Block().events == []


@pytest.mark.parametrize(
    "broken",
    [
        b'a","b',  # two words in the place of one
        b"a\\",  # hides where it ends
        b"\xff\xfe",
        b"\\ud800",
        b"tab\there",
        b'a"}}],"error":{"message":"no"},"x":[{"y":{"z":"',
    ],
)
def test_nothing_unreadable_is_handed_on_among_frames_that_are_alike(broken: bytes) -> None:
    good = [frame(word) for word in ("one ", "two ", "three ")]
    bad = frame("WORD").replace(b"WORD", broken)
    answer = DirectAnswer({})
    told = answer.read(CLIENT, b"".join([*good, bad, frame("four"), frame("five")])).sse()
    assert answer.failure is not None
    assert told == b"".join(good)
    assert answer.text == "one two three "


def test_two_broken_frames_that_would_be_right_together_are_not_handed_on() -> None:
    good = frame("one ") + frame("two ")
    first, second = frame("WORD").replace(b"WORD", b"a\\"), frame("WORD").replace(b"WORD", b',"c')
    answer = DirectAnswer({})
    assert answer.read(CLIENT, good + first + second).sse() == good
    assert answer.failure is not None


def test_an_error_in_the_middle_ends_the_answer_after_the_last_good_word() -> None:
    good = frame("one ") + frame("two ")
    answer = DirectAnswer({})
    error = b'data: {"error":{"message":"out of memory","code":500}}\n\n'
    assert answer.read(CLIENT, good + error + frame("three")).sse() == good
    assert answer.failure is not None
    assert answer.texts == ["one ", "two "]


def test_frames_of_another_choice_are_handed_on_and_not_taken_for_the_first() -> None:
    raws = [frame("a0"), frame("a1", index=1), frame("b0") + frame("b1", index=1), frame("c0") + frame("c1", index=1)]
    answer = DirectAnswer({"n": 2})
    assert read(answer, raws) == b"".join(raws)
    assert answer.text == "a0b0c0"


def test_words_after_the_end_are_no_part_of_the_answer() -> None:
    answer = DirectAnswer({})
    told = answer.read(CLIENT, frame("one") + frame("two") + frame(None, finish="stop") + frame("three")).sse()
    assert told == frame("one") + frame("two")
    assert answer.read(CLIENT, frame("four")).sse() == b""
    assert answer.text == "onetwo"


def test_a_stream_whose_frames_all_differ_is_read_frame_by_frame() -> None:
    frames = [frame(f"w{number} ", obfuscation="x" * number) for number in range(40)]
    answer = DirectAnswer({})
    assert read(answer, [b"".join(frames[:20]), *frames[20:]]) == b"".join(frames)
    assert answer.text == "".join(f"w{number} " for number in range(40))


def test_a_form_that_changes_is_learnt_anew() -> None:
    frames = [frame(f"w{number} ", created=1_000 + number // 10) for number in range(40)]
    answer = DirectAnswer({})
    raws = [b"".join(frames[at : at + 5]) for at in range(0, 40, 5)]
    assert read(answer, raws) == b"".join(frames)
    assert len(answer.texts) == 40


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n"])
def test_other_line_ends_are_understood(end: bytes) -> None:
    frames = [frame(word) for word in ("one ", "two ", "three ")]
    answer = DirectAnswer({})
    assert answer.read(CLIENT, b"".join(frames).replace(b"\n\n", end)).sse() == b"".join(frames)
    assert answer.text == "one two three "


def test_a_role_in_each_frame_is_handed_on() -> None:
    def with_role(content: str) -> bytes:
        return frame(content).replace(b'"delta":{', b'"delta":{"role":"assistant",')

    frames = [with_role(word) for word in ("", "one ", "two ", "three ")]
    answer = DirectAnswer({})
    assert not answer.read(CLIENT, b"").sse()
    assert answer.read(CLIENT, frames[0]).sse() == frames[0]
    assert not answer.begun  # another provider may still answer
    assert answer.read(CLIENT, b"".join(frames[1:])).sse() == b"".join(frames[1:])
    assert answer.texts == ["one ", "two ", "three "]

"""Transcripts as text, and parts made into one."""

import io
from pathlib import Path

import av
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.streaming.transcripts import srt, text, usage_of, verbose_body, vtt
from domain.audio import (
    SAMPLE_RATE,
    AudioInfo,
    AudioSpan,
    DecodedAudio,
    Segment,
    SpanTranscript,
    Transcript,
    TranscriptionOptions,
    TranscriptionPlan,
    Word,
    joined,
)
from domain.usage import Usage
from services.transcription_providers.wire.grouping import segments_of

TRICKY = "a --> b\n\n00:00:09,000 --> 00:00:10,000\n1\n<b>&amp; c</b>"


def transcript(*segments: Segment) -> Transcript:
    said = " ".join(one.text.strip() for one in segments)
    return Transcript(text=said, duration=4_000, segments=list(segments), model="m/x")


def plan(*seconds: float) -> TranscriptionPlan:
    spans, at = [], 0
    for one in seconds:
        spans.append(AudioSpan(at, at + int(one * SAMPLE_RATE)))
        at = spans[-1].end
    audio = DecodedAudio(Path("x"), AudioInfo("wav", "pcm", SAMPLE_RATE, 1, None), at)
    return TranscriptionPlan("m/x", audio, tuple(spans), TranscriptionOptions(words=True))


def read(form: str, written: str) -> list[tuple[int, int, str]]:
    """The cues as FFmpeg reads them, in milliseconds."""
    found = []
    with av.open(io.BytesIO(written.encode()), format=form) as opened:
        for packet in opened.demux():
            if packet.size and packet.pts is not None:
                assert packet.time_base is not None
                start = round(packet.pts * packet.time_base * 1000)
                length = round((packet.duration or 0) * packet.time_base * 1000)
                found.append((start, start + length, bytes(packet).decode()))
    return found


def test_subtitles_look_as_the_protocol_says() -> None:
    told = transcript(
        Segment(id=0, start=0, end=1.5, text=" Text"), Segment(id=1, start=3_661.0045, end=3_662, text="é")
    )
    assert srt(told) == "1\n00:00:00,000 --> 00:00:01,500\nText\n\n2\n01:01:01,004 --> 01:01:02,000\né\n\n"
    assert vtt(told) == "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nText\n\n01:01:01.004 --> 01:01:02.000\né\n\n"
    assert text(told) == "Text é\n"


@pytest.mark.parametrize(("form", "write"), [("srt", srt), ("webvtt", vtt)])
def test_words_that_look_like_subtitles_are_words(form: str, write: object) -> None:
    told = transcript(Segment(id=0, start=1, end=2, text=TRICKY), Segment(id=1, start=2, end=3, text="next"))
    written = write(told)  # type: ignore[operator]
    cues = read(form, written)
    assert [(start, end) for start, end, _ in cues] == [(1_000, 2_000), (2_000, 3_000)]
    assert cues[1][2] == "next"
    assert written.count("-->") == 2


@example([(0.0, 0.0, "\0")])
@given(st.lists(st.tuples(st.floats(0, 90_000), st.floats(0, 30), st.text(max_size=30)), max_size=8))
def test_whatever_was_said_ffmpeg_reads_as_many_cues_as_there_are_words(said: list[tuple[float, float, str]]) -> None:
    said = [(start, length, words and f"{place} {words}") for place, (start, length, words) in enumerate(sorted(said))]
    segments = [Segment(id=0, start=start, end=start + length, text=words) for start, length, words in said]
    told = transcript(*[one for one in segments if one.text.isascii()])
    wanted = [one for one in told.segments if one.text.replace("\0", "").strip()]
    cues = read("srt", srt(told))
    assert len(cues) == len(wanted)
    for (start, end, _), one in zip(cues, wanted, strict=True):
        assert abs(start - one.start * 1000) <= 1
        assert end > start


def test_silence_has_no_cues() -> None:
    told = transcript(Segment(id=0, start=0, end=1, text="  "))
    assert (srt(told), vtt(told)) == ("", "WEBVTT\n\n")


def test_what_a_recogniser_does_not_tell_is_undetermined_or_zero() -> None:
    body = verbose_body(transcript(Segment(id=0, start=0, end=1, text="x")), task="transcribe")
    assert body["language"] == "und"
    assert body["segments"][0]["avg_logprob"] == 0
    assert "words" not in body
    assert body["usage"] == {"type": "duration", "seconds": 4_000}


def part(words: str, start: float, end: float, **more: object) -> SpanTranscript:
    segment = Segment(id=7, start=start, end=end, text=words, speaker="A")
    return SpanTranscript(text=words, segments=[segment], words=[Word(word=words, start=start, end=end)], **more)  # type: ignore[arg-type]


def test_parts_are_joined_with_times_of_the_whole_and_numbered_anew() -> None:
    asked = plan(10, 5.5, 3)
    parts = [part("one", 1, 2), SpanTranscript(text="", words=[]), part("three", 0.5, 99)]
    whole = joined(asked, [one.moved(span) for one, span in zip(parts, asked.spans, strict=True)])
    assert whole.text == "one three"
    assert [(one.id, one.start, one.end) for one in whole.segments] == [
        (0, 1, 2),
        (1, 16, 18.5),
    ]  # 99 is not in the file
    assert [(one.word, one.start, one.end) for one in whole.words or ()] == [("one", 1, 2), ("three", 16, 18.5)]
    assert [one.speaker for one in whole.segments] == ["A", "A-3"]  # nobody knows whether it is the same A
    assert whole.duration == 18.5


def test_usage_that_one_part_does_not_know_is_unknown_for_all() -> None:
    counted = Usage(input_tokens=5, output_tokens=2, total_tokens=7)
    both = joined(plan(1, 1), [part("a", 0, 1, usage=counted), part("b", 0, 1, usage=counted)])
    assert both.usage == counted + counted
    assert usage_of(both)["type"] == "tokens"
    assert joined(plan(1, 1), [part("a", 0, 1, usage=counted), part("b", 0, 1)]).usage is None


def test_a_part_survives_a_checkpoint() -> None:
    one = part("a", 0, 1, usage=Usage(input_tokens=5, output_tokens=2, total_tokens=7))
    assert SpanTranscript.model_validate_json(one.model_dump_json()) == one


def test_words_become_segments_at_pauses_and_before_they_are_too_long() -> None:
    pause = [Word(word="a", start=0, end=0.5), Word(word="b", start=0.6, end=1), Word(word="c", start=1.5, end=2)]
    assert [(one.text, one.start, one.end) for one in segments_of(pause)] == [("a b", 0, 1), ("c", 1.5, 2)]
    endless = [Word(word="x", start=place, end=place + 0.9) for place in range(30)]
    assert all(one.end - one.start <= 12 for one in segments_of(endless))
    assert " ".join(one.text for one in segments_of(endless)).split() == ["x"] * 30
    assert segments_of([]) == []

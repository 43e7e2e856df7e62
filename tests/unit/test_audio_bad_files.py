"""Whatever is sent as sound, the answer is a refusal that the caller understands: soon, with nothing left on disk."""

import gzip
import io
import random
import resource
import struct
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.audio.decoding import decode, probe
from core.audio.limits import AudioLimits
from domain.audio import AudioUpload, DecodedAudio
from domain.errors import InvalidRequest, RouteurError, UnsupportedMedia
from tests.fakes.speech import file_of, need_speech, spoken, spoken_pcm

LIMITS = AudioLimits(max_seconds=60, decode_seconds=4)
FORMS = ("wav", "mp3", "mp4", "webm", "ogg", "flac", "aac")
LEAKS = ("/", "ffmpeg", "libav", "Errno", "avcodec", "avformat", "None")


@pytest.fixture(autouse=True)
def _speech() -> None:
    need_speech()


def good(form: str) -> bytes:
    """Speech in that form."""
    kinds = {
        "wav": ("wav", "pcm_s16le", 16_000),
        "mp3": ("mp3", "libmp3lame", 16_000),
        "mp4": ("ipod", "aac", 16_000),
        "webm": ("webm", "libopus", 48_000),
        "ogg": ("ogg", "libopus", 48_000),
        "flac": ("flac", "flac", 16_000),
        "aac": ("adts", "aac", 16_000),
    }
    if form not in _made:
        container, codec, rate = kinds[form]
        _made[form] = file_of(spoken_pcm(), container, codec, rate=rate)
    return _made[form]


_made: dict[str, bytes] = {}


def tried(folder: Path, content: bytes, limits: AudioLimits = LIMITS) -> DecodedAudio | RouteurError:
    """What becomes of it; whatever that is, it comes soon and leaves no file where it failed."""
    upload, target = folder / "upload.wav", folder / "pcm"
    upload.write_bytes(content)
    target.unlink(missing_ok=True)
    begun = time.monotonic()
    try:
        result: DecodedAudio | RouteurError = decode(AudioUpload(upload, "speech.wav", len(content)), target, limits)
    except RouteurError as error:
        result = error
    assert time.monotonic() - begun < 5
    if isinstance(result, RouteurError):
        assert not target.exists()
        assert not [word for word in (*LEAKS, folder.name) if word in result.message], result.message
    return result


def wav(rate: int = 16_000, channels: int = 1, *, bits: int = 16, claims: int | None = None, tag: int = 1) -> bytes:
    """A second of a tone under a header of one's choice."""
    data = b"".join(struct.pack("<h", 8_000 if number // 20 % 2 else -8_000) for number in range(16_000))
    size = len(data) if claims is None else claims
    align = channels * bits // 8
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * align & 0xFFFFFFFF, align & 0xFFFF, bits)
    return (
        b"RIFF"
        + struct.pack("<I", size + 36 & 0xFFFFFFFF)
        + b"WAVEfmt \x10\0\0\0"
        + form
        + b"data"
        + struct.pack("<I", size)
        + data
    )


def zip_bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("speech.wav", bytes(20_000_000))
    return out.getvalue()


NO_SOUND: dict[str, Callable[[], bytes]] = {
    "text": lambda: b"hello, this is speech\n" * 50,
    "one byte": lambda: b"R",
    "zip": zip_bomb,
    "gzip": lambda: gzip.compress(wav()),
    "png": lambda: b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(200),
    "pdf": lambda: b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n" * 20,
    "html": lambda: b"<!doctype html><html><body><audio src='http://127.0.0.1/'></audio></body></html>",
    "json": lambda: b'{"audio": "UklGRg=="}',
    "utf-16": lambda: "speech in utf-16 ".encode("utf-16") * 100,
    "random": lambda: random.Random(1).randbytes(100_000),
    "zeros": lambda: bytes(100_000),
    "ff": lambda: b"\xff" * 100_000,
    "hls": lambda: b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/a.wav\n",
    "concat": lambda: b"ffconcat version 1.0\nfile '/etc/passwd'\n",
    "concat protocol": lambda: b"concat:/etc/passwd|/etc/hosts",
    "sdp": lambda: b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n",
    "avi": lambda: b"RIFF\0\0\1\0AVI LIST" + bytes(200),
    "executable": lambda: b"\x7fELF\2\1\1" + bytes(1_000),
}


@pytest.mark.parametrize("name", NO_SOUND)
def test_what_is_no_sound_is_refused(tmp_path: Path, name: str) -> None:
    error = tried(tmp_path, NO_SOUND[name]())
    assert isinstance(error, UnsupportedMedia)
    assert error.code == "unsupported_audio"


def test_random_bytes_are_never_taken_for_sound(tmp_path: Path) -> None:
    results = [tried(tmp_path, random.Random(seed).randbytes(20_000)) for seed in range(200)]
    assert {type(result) for result in results} == {UnsupportedMedia}


def test_an_empty_file_is_refused_as_empty(tmp_path: Path) -> None:
    error = tried(tmp_path, b"")
    assert isinstance(error, InvalidRequest)
    assert error.code == "empty_audio"


@pytest.mark.parametrize("form", FORMS)
def test_a_head_without_sound_is_refused(tmp_path: Path, form: str) -> None:
    assert isinstance(tried(tmp_path, good(form)[:40] + bytes(4_000)), RouteurError)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (wav(rate=0), "(sample rate|damaged)"),
        (wav(rate=1_000), "sample rate must be from 4000 to 192000"),
        (wav(rate=3_000_000), "sample rate"),
        (wav(rate=0xFFFFFFFF), "(sample rate|damaged)"),
        (wav(channels=0), "(channels|damaged)"),
        (wav(channels=100), "1 to 8 channels"),
        (wav(channels=65_535), "(channels|damaged)"),
        (wav(bits=0), "(codec|damaged)"),
        (wav(tag=0x161), "codec"),
        (wav(tag=0xBEEF), "codec"),
        (wav()[:44], "damaged"),
        (wav()[: 44 + 1_600], "shorter than 0.1"),
    ],
)
def test_a_wav_with_an_impossible_head_is_refused_with_the_reason(tmp_path: Path, content: bytes, said: str) -> None:
    error = tried(tmp_path, content)
    assert isinstance(error, RouteurError)
    with pytest.raises(type(error), match=said):
        raise error


@pytest.mark.parametrize("claims", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 4_000_000_000])
def test_a_wav_that_is_wrong_about_its_length_gives_what_is_there(tmp_path: Path, claims: int) -> None:
    audio = tried(tmp_path, wav(claims=claims))
    assert isinstance(audio, DecodedAudio)
    assert audio.seconds == pytest.approx(1)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x80000000, 0xFFFFFFF0, 0])
def test_a_riff_with_a_negative_chunk_ends(tmp_path: Path, size: int) -> None:
    whole = wav()
    hostile = whole[:36] + b"LIST" + struct.pack("<I", size) + b"INFO" + whole[36:]
    result = tried(tmp_path, hostile)
    assert isinstance(result, DecodedAudio | InvalidRequest)


@pytest.mark.parametrize("granule", [2**63 - 1, -(2**63), -2, 2**62])
def test_an_ogg_with_a_hostile_position_ends(tmp_path: Path, granule: int) -> None:
    ogg = bytearray(good("ogg"))
    at = ogg.rindex(b"OggS")
    ogg[at + 6 : at + 14] = struct.pack("<q", granule)
    ogg[at + 22 : at + 26] = bytes(4)
    ogg[at + 22 : at + 26] = struct.pack("<I", ogg_checksum(bytes(ogg[at:])))
    result = tried(tmp_path, bytes(ogg))
    assert isinstance(result, DecodedAudio | InvalidRequest)
    if isinstance(result, DecodedAudio):
        assert result.seconds < 4


def ogg_checksum(page: bytes) -> int:
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ 0x04C11DB7 if value & 0x80000000 else value << 1) & 0xFFFFFFFF
    return value


@pytest.mark.parametrize("count", [2**31, 2**31 - 1, 2**32 - 1, 2**26])
@pytest.mark.parametrize("sample_size", [0, 1])
def test_an_mp4_that_promises_billions_of_packets_is_refused(tmp_path: Path, count: int, sample_size: int) -> None:
    mp4 = bytearray(good("mp4"))
    at = mp4.index(b"stsz")
    mp4[at + 8 : at + 16] = struct.pack(">II", sample_size, count)
    error = tried(tmp_path, bytes(mp4))
    assert isinstance(error, InvalidRequest)
    assert error.code == "damaged_audio"


def test_a_fragment_that_promises_billions_of_packets_is_refused(tmp_path: Path) -> None:
    mp4 = bytearray(file_of(spoken_pcm(), "mp4", "aac", options={"movflags": "frag_keyframe+empty_moov"}))
    at = mp4.index(b"trun")
    mp4[at + 8 : at + 12] = struct.pack(">I", 2**27)
    assert isinstance(tried(tmp_path, bytes(mp4)), InvalidRequest)


@pytest.mark.parametrize("place", ["before the sound", "after the sound"])
@pytest.mark.parametrize("size", [2**30, 2**31 - 1, 2**32 - 8])
def test_a_wav_with_a_note_of_gigabytes_is_refused(tmp_path: Path, size: int, place: str) -> None:
    note = b"LIST" + struct.pack("<I", size) + b"INFOISFT" + struct.pack("<I", size - 100) + bytes(26)
    whole = wav()
    error = tried(tmp_path, whole[:36] + note + whole[36:] if place == "before the sound" else whole + note)
    assert isinstance(error, InvalidRequest)
    assert error.code == "damaged_audio"


def test_hostile_promises_take_no_memory(tmp_path: Path) -> None:
    """As `check_mp4` and `check_wav` say, the decoder alone takes gigabytes for these."""
    whole, mp4 = wav(), bytearray(good("mp4"))
    note = b"LIST" + struct.pack("<I", 2**31 - 1) + b"INFOISFT" + struct.pack("<I", 2**30) + bytes(26)
    for table, fields in (("stsz", (1, 2**26)), ("stsc", (1, 1, 2**26, 1)), ("stts", (1, 2**26, 1_024))):
        at = mp4.index(table.encode()) + 8
        mp4[at : at + 4 * len(fields)] = struct.pack(f">{len(fields)}I", *fields)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for content in (whole[:36] + note + whole[36:], bytes(mp4)):
        assert isinstance(tried(tmp_path, content), InvalidRequest)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def pointing_at(other: Path) -> bytes:
    """An mp4 whose sound is said to stand in another file (an `alis` of QuickTime, with an absolute path)."""
    mp4 = good("mp4")
    at = mp4.index(b"url ") - 4
    assert struct.unpack(">I", mp4[at : at + 4])[0] == 12
    name = str(other).encode()
    name += b"\0" * (len(name) % 2)
    body = bytes(10) + bytes(28) + bytes(12) + bytes(64) + bytes(16) + bytes(4) + bytes(16)
    body += struct.pack(">HH", 2, len(name)) + name + struct.pack(">HH", 0xFFFF, 0)
    entry = struct.pack(">I", 12 + len(body)) + b"alis" + bytes(4) + body
    grown = bytearray(mp4[:at] + entry + mp4[at + 12 :])
    for box in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        place = grown.index(box) - 4
        size = struct.unpack(">I", grown[place : place + 4])[0]
        grown[place : place + 4] = struct.pack(">I", size + len(body))
    sound = grown.index(b"mdat") + 4
    assert sound < grown.index(b"moov"), "so that no offset moves"
    for place in range(sound, grown.index(b"moov") - 4):
        grown[place] = 0
    return bytes(grown)


def test_an_mp4_that_points_to_another_file_reads_nothing_there(tmp_path: Path) -> None:
    import av

    (tmp_path / "secret").write_bytes(good("mp4"))
    content = pointing_at(tmp_path / "secret")
    allowed = {"enable_drefs": "1", "use_absolute_path": "1"}
    with av.open(io.BytesIO(content), format="mp4", container_options=allowed) as trusting:
        assert sum(frame.samples for frame in trusting.decode(audio=0)) > 40_000, "the file does point there"
    assert isinstance(tried(tmp_path, content), InvalidRequest)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_cut_anywhere_gives_its_sound_or_a_refusal(tmp_path: Path, form: str) -> None:
    whole = good(form)
    results = [tried(tmp_path, whole[: len(whole) * part // 20]) for part in range(21)]
    seconds = [result.seconds if isinstance(result, DecodedAudio) else 0.0 for result in results]
    assert seconds[0] == 0
    assert seconds[20] > 2.9
    # Only an mp4 keeps what is needed to read it at its end; an ogg comes in pages of a second.
    assert form == "mp4" or seconds[10] == pytest.approx(seconds[20] / 2, abs=0.5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("form", FORMS)
@given(
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=40),
    headward=st.booleans(),
)
def test_a_file_with_flipped_bytes_never_breaks_the_house(
    tmp_path: Path, form: str, flips: list[tuple[float, int]], headward: bool
) -> None:
    content = bytearray(good(form))
    within = min(1_000, len(content)) if headward else len(content)
    for place, change in flips:
        content[int(place * within)] ^= change
    tried(tmp_path, bytes(content))


def test_packets_without_sound_are_passed_over_until_there_are_too_many(tmp_path: Path) -> None:
    mp4 = bytearray(good("mp4"))
    start, end = mp4.index(b"mdat") + 4, mp4.index(b"moov") - 4
    for place in range((start + end) // 2, end):
        mp4[place] = 0xFF
    passed = tried(tmp_path, bytes(mp4))
    assert isinstance(passed, DecodedAudio)
    assert 1 < passed.seconds < 2.5
    given_up = tried(tmp_path, bytes(mp4), replace(LIMITS, max_packets_without_samples=5))
    assert isinstance(given_up, InvalidRequest)


def test_probing_refuses_as_decoding_does(tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(b"#EXTM3U\n")
    with pytest.raises(UnsupportedMedia):
        probe(tmp_path / "x.wav")


def test_the_decoder_says_nothing_on_the_standard_streams(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = bytearray(good("mp3"))
    content[200:4_000:7] = bytes(len(content[200:4_000:7]))
    tried(tmp_path, bytes(content))
    assert capfd.readouterr() == ("", "")


def test_a_wav_of_speech_is_taken(tmp_path: Path) -> None:
    assert isinstance(tried(tmp_path, spoken()), DecodedAudio)

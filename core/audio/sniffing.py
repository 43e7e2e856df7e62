"""What a file is, as its first bytes say: never as its name or its sender says."""

from collections.abc import Callable
from pathlib import Path

from core.audio.promises import check_mp4, check_wav

_HEAD = 16_384
_TAGGED = ("mp3", "aac", "flac")
_ADTS = 0xFFF0
_MPEG_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
#: By layer, III and II, in the numbers of the header.
_MPEG1_KBITS = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
}
_MPEG2_KBITS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)


def sniff(path: Path, max_packets: int) -> str | None:
    """The container: wav, mp3, mp4, webm, ogg, flac or aac; None: none of those.

    Raises:
        InvalidRequest: it promises more than it can hold, or an mp4 more than `max_packets`.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
        tag = _tag_length(head)
        if tag:
            file.seek(tag)
            head = file.read(_HEAD)
    form = _form_of(head)
    if tag and form not in _TAGGED:
        return None
    if form == "mp4":
        check_mp4(path, max_packets)
    if form == "wav":
        check_wav(path)
    return form


def _form_of(head: bytes) -> str | None:
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "wav"
    if head.startswith(b"fLaC"):
        return "flac"
    if head.startswith(b"OggS"):
        return "ogg"
    if head[4:8] == b"ftyp":
        return "mp4"
    if head.startswith(b"\x1a\x45\xdf\xa3") and b"webm" in head[:128]:
        return "webm"
    return _frames_of(head)


def _tag_length(head: bytes) -> int:
    """How long the ID3 tag is that stands before the sound (cover art may make it megabytes)."""
    if len(head) < 10 or not head.startswith(b"ID3") or any(byte & 0x80 for byte in head[6:10]):
        return 0
    size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return size + (20 if head[5] & 0x10 else 10)


def _frames_of(head: bytes) -> str | None:
    """mp3 or aac have no header of their own: only frames, one after the other, maybe after padding or noise."""
    at = head.find(b"\xff")
    while 0 <= at < _HEAD // 4:
        for form, length in (("aac", _adts_length), ("mp3", _mpeg_length)):
            if _follow(head, at, length, 2 if at == 0 else 4):
                return form
        at = head.find(b"\xff", at + 1)
    return None


def _follow(head: bytes, at: int, length: Callable[[bytes], int], frames: int) -> bool:
    """Do that many frames stand there? What is beyond the head, or the end of a short file, is believed."""
    for seen in range(frames):
        if at + 4 > len(head):
            return seen > 0
        step = length(head[at : at + 6])
        if step == 0:
            return False
        at += step
    return True


def _adts_length(header: bytes) -> int:
    """Bytes of an ADTS frame; 0: it is none."""
    if len(header) < 6 or int.from_bytes(header[:2], "big") & 0xFFF6 != _ADTS or header[2] >> 2 & 15 > 12:
        return 0
    length = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
    return length if length > 7 else 0


def _mpeg_length(header: bytes) -> int:
    """Bytes of a frame of MPEG sound, layer II or III (layer I looks like text in UTF-16); 0: it is none."""
    if header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return 0
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    bits, rate, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer in (0, 3) or bits in (0, 15) or rate == 3:
        return 0
    kbits = _MPEG1_KBITS[layer][bits] if version == 3 else _MPEG2_KBITS[bits]
    samples = 576 if layer == 1 and version != 3 else 1_152
    return samples // 8 * kbits * 1_000 // _MPEG_RATES[version][rate] + padding

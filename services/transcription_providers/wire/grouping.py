"""Words made into segments: what is said in one breath."""

from collections.abc import Sequence

from domain.audio import Segment, Word

_PAUSE = 0.4  # seconds of silence that end a segment
_LONGEST = 12.0  # seconds of one segment: what fits on a screen


def segments_of(words: Sequence[Word]) -> list[Segment]:
    """Segments that end at pauses, and none that is too long to be read."""
    groups: list[list[Word]] = []
    for word in words:
        last = groups[-1] if groups else None
        if last is None or word.start - last[-1].end >= _PAUSE or word.end - last[0].start > _LONGEST:
            groups.append([word])
        else:
            last.append(word)
    return [
        Segment(id=place, start=group[0].start, end=group[-1].end, text=" ".join(word.word for word in group))
        for place, group in enumerate(groups)
    ]

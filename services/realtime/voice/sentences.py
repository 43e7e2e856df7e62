"""Text as it is written, in sentences that can be spoken one after the other."""

import re

_END = re.compile(r"[.!?…;:][\"')\]]*\s+|[。！？]|\n+")
_ABBREVIATION = re.compile(
    r"(?:^|\s)(?:[A-Z]|[Mm]rs?|[Mm]s|[Dd]r|[Pp]rof|[Ss]t|[Nn]o|vs|etc|e\.g|i\.e|\d+)\.[\"')\]]*\s+$"
)
_SHORTEST = 12  # characters: less is spoken with what follows, for each call costs
_LONGEST = 300  # characters: who writes without an end is cut at a space
_CLAUSE = re.compile(r"(?:,|\s[-–—])[\"')\]]*\s")
_FIRST_SENTENCE = 60  # characters: one that is longer is not waited for when nothing is heard yet
_FIRST_CLAUSE = 20  # characters: a shorter one would be over before the rest is there


class Sentences:
    """Feed it; each sentence comes out with the space behind it, so that together they are the text.

    Args:
        hurry: nothing is heard yet: of a long first sentence, the first clause comes out alone.
    """

    def __init__(self, *, hurry: bool = False) -> None:
        self._text = ""
        self._hurry = hurry

    def feed(self, text: str) -> list[str]:
        """The sentences that are whole now."""
        self._text += text
        found = self._first_clause() if self._hurry else []
        start = searched = 0
        while (match := _END.search(self._text, searched)) is not None:
            searched = match.end()
            sentence = self._text[start:searched]
            if _is_sentence(sentence):
                found.append(sentence)
                start = searched
        self._text = self._text[start:]
        while len(self._text) > _LONGEST:
            cut = self._text.rfind(" ", 0, _LONGEST) + 1 or _LONGEST
            found.append(self._text[:cut])
            self._text = self._text[cut:]
        self._hurry = self._hurry and not found
        return found

    def end(self) -> str:
        """What is left."""
        rest, self._text = self._text, ""
        return rest

    def _first_clause(self) -> list[str]:
        """Of the first sentence, as far as it is written; none where it is short."""
        ends = (match.end() for match in _END.finditer(self._text))
        end = next((end for end in ends if _is_sentence(self._text[:end])), len(self._text))
        sentence = self._text[:end].strip()
        if len(sentence) <= _FIRST_SENTENCE:
            return []
        cuts = (match.end() for match in _CLAUSE.finditer(sentence))
        cut = next((cut for cut in cuts if len(sentence[:cut].strip()) >= _FIRST_CLAUSE), None)
        if cut is None:
            return []
        cut += len(self._text) - len(self._text.lstrip())
        clause, self._text = self._text[:cut], self._text[cut:]
        return [clause]


def _is_sentence(text: str) -> bool:
    return len(text.strip()) >= _SHORTEST and not _ABBREVIATION.search(text)

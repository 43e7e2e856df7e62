"""Text as it is written, in sentences that can be spoken one after the other."""

import re

_END = re.compile(r"[.!?…;:][\"')\]]*\s+|[。！？]|\n+")
_ABBREVIATION = re.compile(
    r"(?:^|\s)(?:[A-Z]|[Mm]rs?|[Mm]s|[Dd]r|[Pp]rof|[Ss]t|[Nn]o|vs|etc|e\.g|i\.e|\d+)\.[\"')\]]*\s+$"
)
_SHORTEST = 12  # characters: less is spoken with what follows, for each call costs
_LONGEST = 300  # characters: who writes without an end is cut at a space


class Sentences:
    """Feed it; each sentence comes out with the space behind it, so that together they are the text."""

    def __init__(self) -> None:
        self._text = ""

    def feed(self, text: str) -> list[str]:
        """The sentences that are whole now."""
        self._text += text
        found: list[str] = []
        start = searched = 0
        while (match := _END.search(self._text, searched)) is not None:
            searched = match.end()
            sentence = self._text[start:searched]
            if len(sentence.strip()) >= _SHORTEST and not _ABBREVIATION.search(sentence):
                found.append(sentence)
                start = searched
        self._text = self._text[start:]
        while len(self._text) > _LONGEST:
            cut = self._text.rfind(" ", 0, _LONGEST) + 1 or _LONGEST
            found.append(self._text[:cut])
            self._text = self._text[cut:]
        return found

    def end(self) -> str:
        """What is left."""
        rest, self._text = self._text, ""
        return rest

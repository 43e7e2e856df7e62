"""A yes or a no in what somebody has said. Only what is clear counts: everything else is asked again. Pure."""

import re

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_MOST_WORDS = 20  # who says more than that has said more than yes


def _phrases(*texts: str) -> frozenset[tuple[str, ...]]:
    return frozenset(tuple(_WORD.findall(phrase)) for text in texts for phrase in text.split(", "))


_YES = _phrases(
    "yes, yeah, yep, yup, sure, okay, ok, go ahead, go on, do it, do that, please do, of course, absolutely, certainly",
    "definitely, approve, approved, i approve, confirm, confirmed, i confirm, correct, agreed, i agree, fine",
    "that is fine, that's fine, sounds good, no problem, no objection",
    "oui, ouais, d'accord, bien sûr, vas y, allez y, je confirme, j'approuve, approuvé, pas de problème, pas de souci",
    "ja, jawohl, klar, natürlich, einverstanden, genehmigt, kein problem, sí, claro, adelante, de acuerdo, sim",
    "com certeza, sì, va bene, d'accordo, akkoord",
)
_NO = _phrases(
    "no, nope, nah, not, never, don't, do not, stop, cancel, reject, rejected, decline, declined, deny, denied, refuse",
    "refused, i'd rather not, rather not, better not, please don't, please do not",
    "non, pas, jamais, surtout pas, je refuse, refusé, annule, annulez, nein, nicht, niemals, abgelehnt, lieber nicht",
    "nunca, mejor no, não, nee, niet, nooit",
)
_NEITHER = _phrases(
    "don't know, do not know, not sure, no idea, yes and no, je ne sais, pas sûr, weiß nicht, no sé, não sei"
)
#: What is said before the words that count.
_OPENINGS = frozenset(
    _WORD.findall(
        "well um uh uhm hm hmm oh ah eh so right then and i think would say please euh ben alors bon also äh pues bueno"
    )
)
#: With one of these behind it, a yes is none, or not a plain one.
_DOUBTS = frozenset(
    _WORD.findall(
        "no not don't never but wait stop except unless if first before instead change only cancel maybe perhaps"
        " later hold non ne mais attends attendez sauf si d'abord avant plutôt annule nein nicht aber warte nur"
        " wenn erst vielleicht pero espera solo mas ma niet maar"
    )
)


def decision_in(said: str) -> bool | None:
    """True: it is approved. False: it is not. None: neither is clear."""
    words = _WORD.findall(said.lower().replace("’", "'"))
    agreed, refused = _begins(words, _YES), _begins(words, _NO)
    while words and not agreed and not refused and words[0] in _OPENINGS:
        words = words[1:]
        agreed, refused = _begins(words, _YES), _begins(words, _NO)
    if len(words) > _MOST_WORDS or _begins(words, _NEITHER) >= max(agreed, refused, 1):
        return None
    if agreed > refused:
        return None if _DOUBTS.intersection(words[agreed:]) else True
    return False if refused else None


def _begins(words: list[str], phrases: frozenset[tuple[str, ...]]) -> int:
    """How many words the longest phrase has that stands at the beginning; 0: none does."""
    longest = max(map(len, phrases))
    return next((size for size in range(min(longest, len(words)), 0, -1) if tuple(words[:size]) in phrases), 0)

"""A yes or a no in what somebody has said. Only what is clear counts: everything else is asked again. Pure.

A yes must be all that is said: what follows it may be polite, or be words of the question itself, and nothing else. Of
a no the beginning is enough: it does no harm to be taken for one.
"""

import re
from unicodedata import normalize

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ´`＇", "'"))


def _words(text: str) -> list[str]:
    return _WORD.findall(normalize("NFC", text.lower()).translate(_APOSTROPHES))


def _phrases(*texts: str) -> frozenset[tuple[str, ...]]:
    return frozenset(tuple(_words(phrase)) for text in texts for phrase in text.split(", "))


_YES = _phrases(
    "yes, yeah, yep, yup, sure, okay, ok, go ahead, please do, of course, absolutely, certainly, definitely",
    "no problem, no objection, oui, ouais, d'accord, bien sûr, vas y, allez y, pas de problème, pas de souci",
    "ja, jawohl, klar, natürlich, einverstanden, kein problem, sí, claro, adelante, de acuerdo, sim, com certeza",
    "sì, va bene, d'accordo, akkoord",
)
#: A yes too, but orders when more is said: "confirm the address", "go on, explain".
_BARE = _phrases(
    "go on, do it, do that, approve, approved, i approve, confirm, confirmed, i confirm, correct, agreed, i agree",
    "fine, that is fine, that's fine, sounds good, je confirme, j'approuve, approuvé, genehmigt, ich bestätige",
)
_NO = _phrases(
    "no, nope, nah, not, never, don't, dont, do not, stop, stopp, cancel, reject, rejected, decline, declined",
    "deny, denied, refuse, refused, forget it, i'd rather not, rather not, better not, please don't, please do not",
    "non, pas, jamais, surtout pas, je refuse, refusé, annule, annulez, nein, nicht, niemals, abgelehnt, lieber nicht",
    "nunca, mejor no, não, nee, niet, nooit",
)
_NEITHER = _phrases(
    "don't know, do not know, not sure, no idea, yes and no, je ne sais, pas sûr, weiß nicht, no sé, não sei"
)
#: What is said before the words that count.
_OPENINGS = frozenset(
    _words(
        "well um uh uhm hm hmm oh ah eh so right then and i think would say please euh ben alors bon also äh pues bueno"
    )
)
#: What may stand behind a yes.
_POLITE = _phrases(
    "please, thanks, thank you, great, perfect, good, very well, all right, alright, right, it is, you can, you may",
    "now, right now, by all means, sir, madam, merci, s'il te plaît, s'il vous plaît, c'est bon, très bien, bitte",
    "gerne, danke, gut, por favor, gracias, obrigado, obrigada, grazie, per favore, prego, dank je, alsjeblieft, graag",
)
#: How what the question names is named again.
_NAMING = frozenset(_words("it that this them him her the le la les lo das es ihn sie"))
#: Never behind a yes, whatever the question says.
_DOUBTS = frozenset(phrase[0] for phrase in _NO if len(phrase) == 1) | frozenset(
    _words("but wait except unless if first before instead only ne mais sauf si aber nur wenn pero mas ma maar")
)


def decision_in(said: str, question: str = "") -> bool | None:
    """True: it is approved. False: it is not. None: neither is clear."""
    words = _words(said)
    agreed, refused = _begins(words, _YES | _BARE), _begins(words, _NO)
    while words and not agreed and not refused and words[0] in _OPENINGS:
        words = words[1:]
        agreed, refused = _begins(words, _YES | _BARE), _begins(words, _NO)
    if _begins(words, _NEITHER) >= max(agreed, refused, 1):
        return None
    if agreed > refused:
        return True if "?" not in said and _only_agrees(words, frozenset(_words(question))) else None
    return False if refused else None


def _only_agrees(words: list[str], asked: frozenset[str]) -> bool:
    """Is it all one yes, with words of politeness and of the question?"""
    restates = True
    while words:
        if size := _begins(words, _YES):
            words = words[size:]
        elif size := _begins(words, _BARE):
            words, restates = words[size:], False
        elif size := _begins(words, _POLITE):
            words = words[size:]
        elif restates and words[0] in asked | _NAMING and words[0] not in _DOUBTS:
            words = words[1:]
        else:
            return False
    return True


def _begins(words: list[str], phrases: frozenset[tuple[str, ...]]) -> int:
    """How many words the longest phrase has that stands at the beginning; 0: none does."""
    longest = max(map(len, phrases))
    return next((size for size in range(min(longest, len(words)), 0, -1) if tuple(words[:size]) in phrases), 0)

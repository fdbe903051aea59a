"""What a relative caption asks for, by rule: how many words and edits it has, and of which kinds. Coarse, but the same for every benchmark.

A benchmark that knows its edits says so itself (:meth:`data_modules.base.CIRDataModule.describe`).
"""

from __future__ import annotations

import re

OTHER = "other"
JOINTS = re.compile(r"[,;.]|\b(?:and|but|then|also|while)\b")
COLOURS = (
    "black|white|gr[ae]y|red|orange|yellow|green|blue|purple|violet|pink|brown|beige|tan|cream|gold(?:en)?|silver|navy|teal|turquoise|"
    "maroon|burgundy|khaki|colou?rs?|colou?red|colou?rful|darker|lighter|brighter|dark|light|bright|skin"
)
KINDS = {
    "colour": COLOURS,
    "pattern": "patterns?|patterned|stripes?|striped|plaid|floral|flowers?|flowery|dots?|dotted|checked|checkered|prints?|printed|graphic|"
    "logo|letters?|lettering|plain|solid|text|words?",
    "count": "one|two|three|four|five|six|seven|eight|nine|ten|several|many|more than one|pair|single|alone|both|fewer|number of",
    "size": "small|smaller|large|larger|big|bigger|long|longer|short|shorter|tall|taller|tight|tighter|loose|looser|wide|wider|thin",
    "place and view": "left|right|up|down|above|below|behind|front|side|background|foreground|facing|pointing|angle|close-?up|closer|zoom|"
    "zoomed|view|indoors?|outdoors?|outside|inside",
    "removal": "no|not|without|remove|removed|delete|lose|less|take away|instead of|isn't|doesn't",
    "addition": "add|adds|added|put|give|has|have|having|with|wearing|wears|include|includes|plus",
    "degree": r"more|most|less|\w+ier|rather|very|slightly|a bit|much",
    "state or action": r"is \w+ing|are \w+ing|standing|sitting|lying|running|walking|eating|holding|looking|open|closed|sleeping|playing",
}
_PATTERNS = {kind: re.compile(rf"\b(?:{words})\b", re.IGNORECASE) for kind, words in KINDS.items()}


def count_edits(caption: str) -> int:
    """Parts of a caption between commas, semicolons, full stops and joining words; at least 1.

    >>> count_edits("is shorter and has stripes"), count_edits("in red, without sleeves."), count_edits("make it blue")
    (2, 2, 1)
    """
    return max(1, sum(bool(part.strip()) for part in JOINTS.split(caption.lower())))


def kinds(caption: str) -> tuple[str, ...]:
    """The kinds of :data:`KINDS` that a caption has words of; ``other`` if it has none.

    >>> kinds("in red, without sleeves"), kinds("a corgi")
    (('colour', 'removal'), ('other',))
    """
    return tuple(kind for kind, pattern in _PATTERNS.items() if pattern.search(caption)) or (OTHER,)

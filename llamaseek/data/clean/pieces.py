"""What stands between two spaces, in words: the rules of spaCy's English tokenizer.

Marks come off the front and the end in turn, then the middle is cut at hyphens and the like;
abbreviations, contractions and faces are listed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

LETTER, LOWER, UPPER = r"[^\W\d_]", "a-zß-öø-ÿα-ώа-џ", "A-ZÀ-ÖØ-ÞΑ-ΩЀ-Я"
QUOTES = r"'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉⟦⟧"
CURRENCY = r"(?:US\$|C\$|A\$|[$£€¥฿₠-₿﷼])"
ICON = r"[¦©®°℀-⅏←-➿⬀-⯿\U0001F000-\U0001FA6F\uFFFD]"
PUNCTUATION = rf"(?:……|\.\.+|[…,:;!?¿؟¡()\[\]{{}}<>_#*&。？！，、；：～·।،۔؛٪{QUOTES}]|{ICON})"
UNITS = (
    "km[²³]?|m[²³]?|dm[²³]?|cm[²³]?|mm[²³]?|ha|µm|nm|yd|in|ft|kg|g|mg|µg|t|lb|oz|m/s|km/h|kmh|mph"
    "|hPa|Pa|mbar|mb|MB|kb|KB|gb|GB|tb|TB|T|G|M|K|%"
)
PREFIX = re.compile(rf"[§%=—–]|\+(?!\d)|{PUNCTUATION}|{CURRENCY}")
SUFFIX = re.compile(
    rf"""(?:{PUNCTUATION} | ['’][sS] | [—–] | (?<=\d)\+ | (?<=\d)(?:{CURRENCY}|{UNITS})
    | (?<=[\d{LOWER}%²+\-…,:;!?()\[\]{{}}<>_#*&{QUOTES}])\. | (?<=[{UPPER}]{{2}})\.)$""",
    re.VERBOSE,
)
INFIX = re.compile(
    rf"""\.\.+ | … | {ICON} | (?<=\d)[+\-*^](?=[\d-])
    | (?<=[{LOWER}{QUOTES}])\.(?=[{UPPER}{QUOTES}])
    | (?<={LETTER}),(?={LETTER})
    | (?<=[^\W_])(?:---|--|——|[-–—~])(?={LETTER})
    | (?<=[^\W_])[:<>=/](?={LETTER})""",
    re.VERBOSE,
)
ADDRESS = re.compile(
    rf"(?:[\w+.-]{{2,}}://)?(?:\S+@)?"
    rf"(?:(?:[A-Za-z0-9¡-\uffff][\w-]{{0,62}}?\.)+[{LOWER}]{{2,63}}|\d+(?:\.\d+){{3}})"
    rf"(?::\d{{2,5}})?(?:[/?#]\S*)?"
)


def _listed(text: str) -> list[str]:
    return text.split()


WHOLE = frozenset(
    _listed(
        r"""
    :-) :-( ;-) :-/ :-] :-| :-} :-0 :-D :-P :-p :-O :-o :-* :-3 :-> :-X (-: [-: :-)) :)) :((
    ' '' ;) :) :( ): (: :/ :| (; ;( =) (= ]= =[ [= =] [: :] =| =/ :> <3 <33 >.< -_- ^_^ 8) :*
    :') :x :X :p :P :o :O :D :0 :1 :3 ;D =D =3 and/or w/o <space> \") \n \t C++ 's 'S 'd 're
    'em 'll 'cause 'bout ma'am o'clock Mt. co. Co. Corp. Inc. Ltd. Mr. Mrs. Ms. Dr. Jr. St.
    Prof. Gen. Gov. Rep. Rev. Sen. Adm. Bros. Md. Mo. Mont. Messrs. vs. v.s. a.m. p.m. e.g.
    E.g. E.G. i.e. I.e. I.E. Ph.D. D.C. N.C. N.D. N.H. N.J. N.M. N.Y. S.C. Jan. Feb. Mar. Apr.
    Jun. Jul. Aug. Sep. Sept. Oct. Nov. Dec. Ak. Ala. Ariz. Ark. Calif. Colo. Conn. Del. Fla.
    Ga. Ia. Id. Ill. Ind. Kan. Kans. Ky. La. Mass. Mich. Minn. Miss. Neb. Nebr. Nev. Okla.
    Ore. Pa. Tenn. Va. Wash. Wis. doin' goin' nothin' somethin' lovin' havin'"""
    )
) | frozenset(f"{letter}." for letter in "abcdefghijklmnopqrstuvwxyzäöü")
ENDINGS = {  # after which words an ending comes apart, with its apostrophe or without
    "m": "i",
    "ll ll've d d've": "i you he she it we they who what when where why how there that this these "
    "those",
    "ve": "i you we they who what when where why how there these those could might must should "
    "would",
    "re": "you we they who what when where why how there these those",
    "s": "he she it who what when where why how there that this",
    "n't n't've": "ca could do does did had may might must need ought sha should wo would ai are "
    "is was were have has dare",
}
NOT_CONTRACTED = frozenset(
    _listed(
        """
    ill its hell shell shed were well whore"""
    )
)


@lru_cache(maxsize=1 << 17)
def split_piece(piece: str) -> tuple[str, ...]:
    """Marks off the front and the end in turn, then the middle at hyphens and contractions."""
    front: list[str] = []
    back: list[str] = []
    while piece and piece not in EXCEPTIONS:
        prefix, suffix = _prefix(piece), _suffix(piece)
        if prefix and piece[prefix:] in EXCEPTIONS:
            suffix = 0
        elif suffix and piece[:-suffix] in EXCEPTIONS:
            prefix = 0
        if prefix + suffix > len(piece):
            suffix = 0
        if not prefix and not suffix:
            break
        front += [piece[:prefix]] if prefix else []
        back += [piece[len(piece) - suffix :]] if suffix else []
        piece = piece[prefix : len(piece) - suffix]
    return _rejoined([*front, *_middle(piece), *reversed(back)])


def _rejoined(parts: list[str]) -> tuple[str, ...]:
    """Neighbours that make an exception after all, as `)` and `:` in `f(x):` do."""
    found: list[str] = []
    at = 0
    while at < len(parts):
        ends = range(min(at + 4, len(parts)), at + 1, -1)
        end = next((end for end in ends if "".join(parts[at:end]) in EXCEPTIONS), at + 1)
        joined = "".join(parts[at:end])
        found += EXCEPTIONS[joined] if end > at + 1 else [joined]
        at = end
    return tuple(found)


def _prefix(piece: str) -> int:
    found = PREFIX.match(piece)
    return found.end() if found else 0


def _suffix(piece: str) -> int:
    found = SUFFIX.search(piece)
    return len(piece) - found.start() if found else 0


def _middle(piece: str) -> Iterator[str]:
    if piece in EXCEPTIONS:
        yield from EXCEPTIONS[piece]
    elif not piece or ADDRESS.fullmatch(piece):
        yield from [piece] if piece else []
    else:
        yield from _at_infixes(piece)


def _at_infixes(piece: str) -> Iterator[str]:
    start = 0
    for found in INFIX.finditer(piece):
        if found.start() > start:
            yield piece[start : found.start()]
            yield found.group()
            start = found.end()
    if start < len(piece):
        yield piece[start:]


def _exceptions() -> dict[str, tuple[str, ...]]:
    """Pieces with a known split."""
    found: dict[str, tuple[str, ...]] = {piece: (piece,) for piece in WHOLE}
    for endings, begins in ENDINGS.items():
        for begin in begins.split():
            for ending in endings.split():
                found |= _contractions(begin, ending)
    others = {"can|not", "gon|na", "got|ta", "let|'s", "not|'ve", "y'|all", "y|all", "c'm|on"}
    for other in others:
        first, second = other.split("|")
        found |= {f"{a}{second}": (a, second) for a in (first, first.capitalize())}
    for hour in range(1, 13):
        found |= {f"{hour}{half}": (str(hour), half) for half in ("a.m.", "am", "p.m.", "pm")}
    return found


def _contractions(begin: str, ending: str) -> dict[str, tuple[str, ...]]:
    """`do` and `n't` with both apostrophes and none, small and capitalized."""
    with_sign = ending if ending.startswith("n") else f"'{ending}"
    parts = with_sign.replace("'ve", " 've").split()
    found = {}
    for first in (begin, begin.capitalize()):
        for sign in "'’", "’", "":
            tail = [part.replace("'", sign[:1]) for part in parts]
            whole = first + "".join(tail)
            if whole.lower() not in NOT_CONTRACTED:
                found[whole] = (first, *tail)
    return found


EXCEPTIONS = _exceptions()

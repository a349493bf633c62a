"""Words of messages: how many of what, the nearest known name, and text that is safe to show."""

from __future__ import annotations

import codecs
import difflib
import unicodedata
from collections.abc import Collection, Iterable


def counted(number: int, what: str, form: str = "") -> str:
    """1 image, 2 images; `what` is one of them, `form` the format of the number."""
    return f"{number:{form}} {what if number == 1 else plural(what)}"


def plural(what: str) -> str:
    return what + ("es" if what.endswith(("s", "x", "sh", "tch", "nch")) else "s")


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like this one, capitals aside; "" where none is alike."""
    alike = {other.casefold(): other for other in known}
    close = difflib.get_close_matches(name.casefold(), alike, n=1)
    return alike[close[0]] if close else ""


def unknown(what: str, name: str, known: Collection[str]) -> str:
    """A sentence or three: what was asked for, the nearest there is, and all there are."""
    said = f"{what} is {name!r}, which is not known." if name else f"{what} is not given."
    close = nearest(name, known)
    return said + f" Do you mean {close!r}?" * bool(close) + f" Known: {', '.join(known)}."


# What moves a terminal's cursor, changes its colours, ends a line or turns the direction of text.
_ALTERS = {"Cc", "Zl", "Zp"}
_TURNS = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: object, keep: str = "") -> str:
    """Text without control characters, but for those to keep: each becomes its \\uXXXX."""
    text = str(text)
    if text.isascii() and text.isprintable():  # nearly always
        return text
    return "".join(
        f"\\u{ord(sign):04x}"
        if sign not in keep and (sign in _TURNS or unicodedata.category(sign) in _ALTERS)
        else sign
        for sign in text
    )


_PLAINER = {"±": "+-", "—": "-", "–": "-", "×": "x", "…": "...", "→": "->", "’": "'"}


def _for_poor_encodings(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    return "".join(_PLAINER.get(sign) or _escaped(sign) for sign in signs), error.end


def _escaped(sign: str) -> str:
    """As in JSON, so that a line of JSON stays one: pairs of surrogates beyond \\uffff."""
    units = sign.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


POOR = "plainer"  # errors= of a stream: ± becomes +-, and what cannot be written its \uXXXX
codecs.register_error(POOR, _for_poor_encodings)

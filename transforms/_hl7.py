r"""What every reader of HL7 v2 (ER7, `MSH|^~\&|…`) shares: delimiters, escape sequences and charsets.

Source: HL7 v2.5.1 chapter 2, sections 2.5 (delimiters) and 2.7 (escape sequences); table 0211 (charsets).
"""

from __future__ import annotations

import re
from functools import lru_cache

from gateway import MessageError

HEADERS = ("MSH", "FHS", "BHS")
"""Segments that bring their own delimiters; their field 1 is the separator itself."""

STANDARD = "|^~\\&"
"""The usual delimiters: field, component, repetition, escape, subcomponent."""

_HEXADECIMAL = "X((?:[0-9A-Fa-f]{2})+)"
_FORMATTING = r"H|N|\.[a-z]{2}(?:[+-]?\d+)?|C[0-9A-Fa-f]{4}|M[0-9A-Fa-f]{4,6}"


def _codecs() -> dict[str, str]:
    # Bytes that start with "MSH" are not UTF-16 or UTF-32, whatever they are called.
    known = dict.fromkeys(("", "ASCII", "USASCII", "ISOIR6", "UTF8", "UTF16", "UTF32", "UNICODE"), "utf-8")
    known |= dict.fromkeys(("UNICODEUTF8", "UNICODEUTF16", "UNICODEUTF32"), "utf-8")
    for part in (*range(1, 12), *range(13, 17)):
        known |= dict.fromkeys((f"8859{part}", f"ISO8859{part}"), f"iso8859-{part}")
    for page in range(1250, 1259):
        known |= dict.fromkeys((f"WINDOWS{page}", f"CP{page}"), f"cp{page}")
    known |= dict.fromkeys(("ISOIR87", "JISX0202", "JAS2020", "ISO2022JP"), "iso2022_jp")
    known |= {"LATIN1": "iso8859-1", "ISOIR159": "iso2022_jp_2", "ISOIR14": "shift_jis", "SHIFTJIS": "shift_jis"}
    known |= {"GB18030": "gb18030", "GB180302000": "gb18030", "BIG5": "big5"}
    return known | {"KSX1001": "euc_kr", "EUCKR": "euc_kr", "UTF8SIG": "utf-8-sig"}


# A table and not `codecs.lookup`, which remembers each name that it did not find: peers choose these names.
_CODECS = _codecs()
_PUNCTUATION = str.maketrans("", "", " -_/")


def codec(name: str) -> str | None:
    """The Python codec of a charset named as in MSH-18 (HL7 table 0211) or in a content type; None: not known.

    No name, and ASCII, are read as UTF-8, which contains it; other bytes are refused rather than guessed.
    """
    return _CODECS.get(name.upper().translate(_PUNCTUATION))


def codec_of_names(names: list[str]) -> str | None:
    """The Python codec of the repetitions of an MSH-18; None: not known.

    Japanese messages name the first set of ISO 2022, often as nothing, and then what they shift to.
    """
    shifts = next((known for name in names[1:] if (known := codec(name) or "").startswith("iso2022")), None)
    return shifts or codec(names[0])


class Er7:
    """The delimiters and the charset of one message: how its values are escaped. Get one with `er7`."""

    def __init__(self, delimiters: str, charset: str) -> None:
        self.delimiters = delimiters
        self.field, self.component, self.repetition, self.escape_mark, self.subcomponent = tuple(delimiters[:5])
        self.truncation = delimiters[5:6]
        self._charset = charset
        self._signs = {"F": self.field, "S": self.component, "T": self.subcomponent, "R": self.repetition}
        self._signs["E"] = self.escape_mark
        if self.truncation:
            self._signs["L"] = self.truncation
        self._letters = {sign: letter for letter, sign in self._signs.items()}
        mark, signs = re.escape(self.escape_mark), "".join(map(re.escape, delimiters))
        kept = rf"{_FORMATTING}|Z[^{signs}\x00-\x1f\x7f]*"
        self._sequences = re.compile(f"{mark}(?:([FSTREL])|{_HEXADECIMAL}|{kept}){mark}")
        self._specials = re.compile(rf"{mark}(?:{_HEXADECIMAL}|{kept}){mark}|[{signs}\x00-\x08\n-\x1f\x7f]")

    def unescape(self, raw: str) -> str:
        r"""The text of an escaped value. Formatting (`\.br\`, `\H\`), what no charset explains and strays stay."""
        return self._sequences.sub(self._unescaped, raw) if self.escape_mark in raw else raw

    def escape(self, text: str) -> str:
        r"""The value that carries this text: delimiters and control characters escaped, formatting left as it is."""
        return self._specials.sub(self._escaped, text)

    def _unescaped(self, found: re.Match[str]) -> str:
        letter, digits = found.groups()
        if letter is not None:
            return self._signs.get(letter, found[0])
        decoded = self._hexadecimal(digits) if digits else None
        return found[0] if decoded is None else decoded

    def _escaped(self, found: re.Match[str]) -> str:
        special, mark = found[0], self.escape_mark
        if len(special) > 1:
            inside = special[1:-1]
            means_itself = found[1] is None or self._hexadecimal(found[1]) is None
            if means_itself and not any(sign in inside for sign in self.delimiters):
                return special
            return f"{mark}E{mark}{self.escape(inside)}{mark}E{mark}"
        letter = self._letters.get(special)
        return f"{mark}{letter}{mark}" if letter else f"{mark}X{ord(special):02X}{mark}"

    def _hexadecimal(self, digits: str) -> str | None:
        if digits in ("000D", "000d", "000A", "000a"):  # how HAPI writes a line end
            return chr(int(digits, 16))
        try:
            return bytes.fromhex(digits).decode(self._charset)
        except UnicodeDecodeError:
            return None


@lru_cache(64)
def er7(delimiters: str, charset: str = "utf-8") -> Er7:
    """The escaping of messages with these delimiters (five or, with truncation, six) and this Python codec."""
    return Er7(delimiters, charset)


def delimiters_of(header: str) -> str:
    """All delimiters of a header segment: a short MSH-2, legal to receive, is filled up with the usual ones.

    Raises:
        MessageError: code "malformed": they are letters, or one has two roles.
    """
    separator = header[3:4]
    signs = header[4:12].split("\r", 1)[0].split("\n", 1)[0]
    whole = separator + (signs.split(separator, 1)[0][:5] if separator else "")
    if not separator or len(set(whole)) != len(whole) or not whole.isprintable() or any(map(_in_words, whole)):
        raise MessageError(
            f"hl7: the delimiters after {header[:3]} are {whole!r}, expected different signs such as {STANDARD!r}",
            code="malformed",
        )
    for usual in STANDARD[len(whole) :]:
        whole += next(sign for sign in usual + "!$%@" if sign not in whole)
    return whole


def _in_words(sign: str) -> bool:
    return sign.isalnum() or sign.isspace()

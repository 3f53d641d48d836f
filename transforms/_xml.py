"""XML without its dangers: the one place that calls lxml's parser, and the names that XML allows."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lxml import etree

from gateway import Limits, MessageError
from transforms._charset import charset_of

_START = (
    ":A-Z_a-z\xc0-\xd6\xd8-\xf6\xf8-\u02ff\u0370-\u037d\u037f-\u1fff\u200c-\u200d\u2070-\u218f\u2c00-\u2fef"
    "\u3001-\ud7ff\uf900-\ufdcf\ufdf0-\ufffd\U00010000-\U000effff"
).replace(":", "")
_PART = f"[{_START}][{_START}\\-.0-9\xb7\u0300-\u036f\u203f-\u2040]*"
_NAME = re.compile(f"(?:({_PART}):)?({_PART})")
_MAX_NAME = 1000

ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""A character that XML 1.0 can't carry in any form. Source: XML 1.0, production 2 (Char)."""


_HARDENED: dict[str, Any] = {
    "resolve_entities": False,
    "no_network": True,
    "load_dtd": False,
    "dtd_validation": False,
    "attribute_defaults": False,
    "huge_tree": False,
    "recover": False,
    "remove_comments": True,
    "remove_pis": True,
    "decompress": False,
}


def prefix_of(name: str) -> str | None:
    """The namespace prefix of a qualified name, "" if it has none; None: XML allows no such name.

    Source: Namespaces in XML 1.0, production 7 (QName).
    """
    found = _NAME.fullmatch(name) if len(name) <= _MAX_NAME else None
    return None if found is None else found[1] or ""


def parser(charset: str | None = None, *, whole: bool = False) -> etree.XMLParser:
    """A fresh hardened parser: no network, no entities, no DTD, no huge documents, no repairs.

    whole: it keeps comments and processing instructions.
    """
    if whole:
        return etree.XMLParser(encoding=charset, **{**_HARDENED, "remove_comments": False, "remove_pis": False})
    return etree.XMLParser(encoding=charset, **_HARDENED)


def root_of(body: bytes, content_type: str, limits: Limits, *, whole: bool = False) -> etree._Element:
    """The root element of an XML document that keeps to the limits.

    Its encoding is that of the byte order mark, else of `charset` in the content type, else what it declares.
    whole: with its comments and processing instructions.

    Raises:
        MessageError: not well formed, over a limit, or with a DTD, which is always refused.
    Source: RFC 7303 section 3.
    """
    if not body:
        raise MessageError("xml: the body is empty; expected an XML document", code="malformed")
    charset = charset_of(content_type)
    if charset and body.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        charset = None
    try:
        root = etree.fromstring(body, parser(charset, whole=whole))
    except etree.XMLSyntaxError as error:
        raise _malformed(error) from None
    except LookupError:
        raise MessageError(f"xml: charset {charset} is none of XML; UTF-8 always is", code="unsupported") from None
    document = root.getroottree().docinfo
    if document.internalDTD is not None:
        raise MessageError(
            "xml: the document has a DTD (<!DOCTYPE …>), which is refused; send it without", code="malformed"
        )
    if "utf-7" in ((document.encoding or "").lower(), charset):
        raise MessageError("xml: the document is in UTF-7, which hides markup; send it in UTF-8", code="unsupported")
    _check_limits(root, body, limits)
    return root


def _check_limits(root: etree._Element, body: bytes, limits: Limits) -> None:
    """Each element needs a `<` and each attribute a `=`: most documents are let through by counting those."""
    tags = body.count(b"<")
    if tags > limits.xml_elements and sum(1 for _ in root.iter()) > limits.xml_elements:
        raise MessageError(f"xml: more than {limits.xml_elements} elements (limits.xml_elements)", code="malformed")
    if body.count(b"=") > limits.xml_attributes:
        for element in root.iter():
            if len(element.attrib) > limits.xml_attributes:
                raise MessageError(
                    f"xml: an element has more than {limits.xml_attributes} attributes (limits.xml_attributes)",
                    code="malformed",
                )
    if tags > limits.xml_depth and _deeper(root, limits.xml_depth - 1):
        raise _too_deep(limits.xml_depth)


def _deeper(element: etree._Element, levels: int) -> bool:
    """Whether there are more levels than that below the element."""
    if not levels:
        return len(element) > 0
    return any(len(child) and _deeper(child, levels - 1) for child in element)


def _too_deep(limit: int) -> MessageError:
    return MessageError(f"xml: nested more than {limit} deep (limits.xml_depth)", code="malformed")


def _malformed(error: etree.XMLSyntaxError) -> MessageError:
    line, column = error.position
    found = error.msg or "not well formed"
    if "Excessive depth" in found:
        return _too_deep(256)
    # libxml2 quotes names, never text; a name may still be as long as the sender likes
    found = re.sub(r",? line \d+, column \d+.*|, (?:use|try) XML_PARSE_HUGE.*", "", found, flags=re.DOTALL)
    return MessageError(f"xml: malformed at line {line} column {column}: {found:.120}", code="malformed")


class SameFolder(etree.Resolver):
    """Lets a document that is compiled include only what is beside it, and notes what it was."""

    def __init__(self, path: Path, what: str) -> None:
        """what: what such a document is, such as "schema", for the complaint."""
        super().__init__()
        self._folder = path.parent.resolve()
        self._what = what
        self.used: list[Path] = []
        self.refused: str | None = None

    def resolve(self, url: str, public_id: str | None, context: Any) -> Any:  # type: ignore[override]  # as it is called
        parts = urlsplit(url)
        path = Path(unquote(parts.path) if parts.scheme == "file" else url).resolve()
        if parts.scheme not in ("", "file"):
            self.refused = f"it includes {url:.200}, which is never fetched; keep that {self._what} beside it"
        elif not path.is_relative_to(self._folder):
            self.refused = f"it includes {path.name} from outside of its own folder; keep that {self._what} beside it"
        elif not path.is_file():
            self.refused = f"it includes {path.relative_to(self._folder)}, and there is no such file beside it"
        else:
            self.used.append(path)
            return None
        # An empty document is an error of its own, and nothing is read
        return self.resolve_string("", context, base_url=url)

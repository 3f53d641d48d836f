"""XSLT stylesheets, compiled at load. One reads and writes nothing but the message: no file, no network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lxml import etree

from gateway import Message, MessageError
from transforms._xml import SameFolder, parser, root_of

_XSL = "{http://www.w3.org/1999/XSL/Transform}"
_ROOTS = (f"{_XSL}stylesheet", f"{_XSL}transform")
_DECLARATION = re.compile(rb"<\?xml[^>]*\?>")
_DENY_ALL: Any = etree.XSLTAccessControl.DENY_ALL  # type: ignore[attr-defined]  # the stubs lack it
_MEDIA_TYPES = {"xml": "application/xml", "html": "text/html", "text": "text/plain"}
_VAGUE = ("runtime error", "compilation error", "unknown error", "XPath evaluation returned", "Undefined variable")
"""How libxslt's entries begin that say no more than the one before or behind them."""
_ENDLESS = "xsltApplySequenceConstructor: A potential infinite"
_SAID = {
    "potential infinite": "its templates call each other without end",
    "rights for": "it reads or writes a file, or asks the network, which is never done; use params for what it needs",
    "Unregistered function": "it calls a function that XSLT 1.0 does not have",
}
"""What libxslt says in words of its own, or with names of the inside."""
_SHOWN = 200


class Stylesheet:
    """A compiled XSLT 1.0 stylesheet, with what it imports and includes from its own folder."""

    def __init__(self, path: Path) -> None:
        """Compiles the stylesheet in this file.

        Raises:
            ValueError: it is no XSLT 1.0, is broken, or uses what is not in its folder; says at which line.
        """
        self.path = path
        reader = parser()
        neighbours = SameFolder(path, "stylesheet")
        reader.resolvers.add(neighbours)
        tree = _tree(path, reader)
        etree.clear_error_log()
        try:
            transform: Any = etree.XSLT(tree, access_control=_DENY_ALL, regexp=False)
        except etree.LxmlError as error:
            text = neighbours.refused or _why(error.error_log, str(error))
            raise ValueError(f"{_place(path, error.error_log)}: {text}") from None
        if len(transform.error_log):  # an instruction that nobody knows would be left out in silence
            raise ValueError(f"{_place(path, transform.error_log)}: {_why(transform.error_log, _VAGUE[2])}")
        self._transform = transform
        self.files = (path, *neighbours.used)
        roots = [*(_tree(file, parser()).getroot() for file in neighbours.used), tree.getroot()]
        self.params = frozenset(str(each.get("name")) for root in roots for each in root.iterchildren(f"{_XSL}param"))
        self._output: dict[str, str] = {}
        for root in roots:  # what imports wins over what is imported
            for each in root.iterchildren(f"{_XSL}output"):
                self._output.update({str(key): str(value) for key, value in each.attrib.items()})

    def apply(self, message: Message, params: Mapping[str, str]) -> Message:
        """The message with what the stylesheet makes of its body, and the content type of its `xsl:output`.

        Raises:
            MessageError: the body is no XML, the stylesheet refused it or failed, or it wrote more than
                `limits.template_output` bytes.
        """
        name = self.path.name
        media_type = message.content_type.partition(";")[0].strip().lower()
        if not media_type.endswith(("/xml", "+xml")):
            raise MessageError(
                f"xslt: {name} reads XML, the body is {media_type:.60}; write the step format: xml before"
            )
        limits = message.formats.limits
        root = root_of(message.body, message.content_type, limits, whole=True)
        quoted = {key: _quoted(key, value) for key, value in params.items()}
        try:
            result: Any = self._transform(root.getroottree(), **quoted)
            body = bytes(result)
        except etree.LxmlError as error:
            log = self._transform.error_log
            raise MessageError(f"xslt: {_place(self.path, log)}: {_why(log, str(error))}") from None
        if len(body) > limits.template_output:
            raise MessageError(
                f"xslt: {name} wrote {len(body)} bytes, {limits.template_output} at most (limits.template_output)"
            )
        return message.with_body(body, self._content_type(result, body))

    def _content_type(self, result: Any, body: bytes) -> str:
        """As `xsl:output` says; without a method, HTML if the root element is html, else XML. XSLT 1.0 section 16."""
        root = result.getroot()
        method = self._output.get("method") or (
            "html" if root is not None and str(root.tag).lower() == "html" else "xml"
        )
        if method == "xml" and root is None and b"<" not in _DECLARATION.sub(b"", body, count=1):
            raise MessageError(
                f"xslt: {self.path.name} made no element of this message; for text, write "
                '<xsl:output method="text"/> into it'
            )
        media_type = self._output.get("media-type") or _MEDIA_TYPES.get(method, "application/xml")
        charset = self._output.get("encoding", "UTF-8").lower()
        says_itself = method == "xml" and self._output.get("omit-xml-declaration") != "yes"
        return media_type if says_itself or "charset" in media_type else f"{media_type}; charset={charset}"


def _tree(path: Path, reader: etree.XMLParser) -> Any:
    """The document in a file.

    Raises:
        ValueError: it can't be read, is no XML, or no stylesheet of XSLT 1.0.
    """
    try:
        tree = etree.parse(path, reader)
    except etree.XMLSyntaxError as error:
        text = re.sub(r",? line \d+, column \d+.*", "", error.msg or "malformed", flags=re.DOTALL)
        raise ValueError(f"{path.name} line {error.position[0]}: it is no XML: {_short(text)}") from None
    except OSError as error:
        raise ValueError(f"{path.name} can't be read: {error.strerror or 'not found'}") from None
    root = tree.getroot()
    if tree.docinfo.internalDTD is not None:
        raise ValueError(
            f"{path.name} line 1: it has a DTD (<!DOCTYPE …>); leave it out, and write characters as they are"
        )
    version = root.get("version") if root.tag in _ROOTS else root.get(f"{_XSL}version")
    if version is None:
        raise ValueError(
            f"{path.name} line {root.sourceline}: it is no XSLT stylesheet: its root element is {root.tag:.60}, "
            'expected xsl:stylesheet with version="1.0" and xmlns:xsl="http://www.w3.org/1999/XSL/Transform"'
        )
    if version not in ("1.0", "1.1"):
        raise ValueError(
            f"{path.name} line {root.sourceline}: it says version {version:.20}, and XSLT 1.0 is what runs here; "
            'write it in XSLT 1.0, with version="1.0"'
        )
    return tree


def _quoted(name: str, value: str) -> Any:
    try:
        return etree.XSLT.strparam(value)
    except ValueError:
        raise MessageError(f"xslt.params.{name}: it holds a character that XML does not have") from None


def _place(path: Path, log: Any) -> str:
    """The file and, where libxslt says it, the line that the last entry is about."""
    for entry in reversed(list(log)):
        if entry.line and entry.message.startswith(_VAGUE[:2]):
            return f"{Path(entry.filename).name} line {entry.line}"
    return path.name


def _why(log: Any, text: str) -> str:
    endless = next((entry.message for entry in log if entry.message.startswith(_ENDLESS)), None)
    if endless is not None:  # the names of all templates and variables on the way come behind it
        text = endless
    elif text.startswith(_VAGUE):
        told = [entry.message for entry in log if not entry.message.startswith(_VAGUE)]
        text = told[-1] if told else "it failed"
    return next((said for key, said in _SAID.items() if key in text), _short(text))


def _short(text: str) -> str:
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"

"""The formats by content type: each is imported when a body of its type is first read."""

from __future__ import annotations

from gateway.errors import MessageError
from gateway.limits import Limits
from gateway.message import Formats, Tree
from gateway.ports import Format
from gateway.registry import component

# Which format a content type means.
_BY_CONTENT_TYPE = {
    "application/json": "json",
    "text/json": "json",
    "application/xml": "xml",
    "text/xml": "xml",
    "text/plain": "text",
    "application/x-www-form-urlencoded": "form",
    "text/csv": "csv",
    "application/msgpack": "msgpack",
    "application/vnd.msgpack": "msgpack",
    "application/x-msgpack": "msgpack",
    "application/hl7-v2": "hl7",
    "x-application/hl7-v2+er7": "hl7",
    "application/x-fix": "fix",
}
# What says too little to be read by: the format has settings that it needs.
_BY_STEP = {"application/x-fixed-width": "fixed_width: {fields: …}"}
_BY_SUFFIX = {"+json": "json", "+xml": "xml"}


class _Formats:
    """The formats by content type, with one route's limits; each is imported and made on first use."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._made: dict[str, Format] = {}

    def parse(self, body: bytes, content_type: str) -> Tree:
        known = self._made.get(content_type) or self._find(content_type)
        return known.parse(body, content_type, self.limits)

    def format(self, tree: Tree, content_type: str) -> bytes:
        known = self._made.get(content_type) or self._find(content_type)
        return known.format(tree)

    def _find(self, content_type: str) -> Format:
        media_type = content_type.partition(";")[0].strip().lower()
        word = _BY_CONTENT_TYPE.get(media_type) or _BY_SUFFIX.get(media_type[media_type.rfind("+") :])
        if media_type in _BY_STEP:
            raise MessageError(
                f"body: {media_type} does not say what it holds; read it with the step "
                f"parse: {{{_BY_STEP[media_type]}}}, and write it with format:",
                code="unsupported",
            )
        if word is None:
            raise MessageError(
                f"body: no format reads {content_type!r}; known are {', '.join(sorted(_BY_CONTENT_TYPE))}; "
                "say content_type: at the source if it is one of these",
                code="unsupported",
            )
        found = component("Format", word)()
        assert isinstance(found, Format)
        if len(self._made) < 100:  # peers choose content types: don't let them fill the memory with parameters
            self._made[content_type] = found
        return found


def formats_with(limits: Limits) -> Formats:
    """All formats, by content type, that keep to these limits."""
    return _Formats(limits)

"""Builds the nodes of one file from the events of the YAML parser, and says in sentences what can't be read."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml

from gateway.documents.complaints import Complaint, Loc, Place, quoted, shown_value, subject_of
from gateway.documents.document import Entry, Node, Scalar
from gateway.documents.references import References
from gateway.exact import Referenced

_DEEPEST = 64
_MOST_BY_ALIASES = 10_000
_MOST_DIGITS = 400
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Stop(Exception):  # noqa: N818 - no error of its own: the complaint is already noted
    """Nothing behind this place can be read."""


# Characters that YAML does not allow, and line breaks of YAML 1.1 that 1.2 and editors do not count as such.
_REFUSED = re.compile("[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_LINE_END = re.compile(r"\r\n|\r|\n")


class Builder:
    """Nodes of one file, built from the parser's events: so depth and aliases are checked before anything grows."""

    def __init__(
        self, file: Path, text: str, environment: Mapping[str, str] | None, complaints: list[Complaint]
    ) -> None:
        self._file = file
        self._text = text.removeprefix("\ufeff")
        self._lines = _LINE_END.split(self._text)
        self._starts = [0, *(found.end() for found in _LINE_END.finditer(self._text))]
        self._references = References(file.parent, os.environ if environment is None else environment)
        self._complaints = complaints
        self._events: Iterator[Any] = iter(())
        self._anchors: dict[str, Node | None] = {}
        self._by_aliases = 0
        self._opened: list[Any] = []
        """The starts of the lists and mappings in brackets that have not ended yet."""

    def root(self) -> Node | None:
        """The file's mapping; None: it can't be read, and why is noted."""
        try:
            if refused := _REFUSED.search(self._text):
                code = f"{ord(refused[0]):04X}"
                self._stop(refused.start(), f'the character U+{code} is not taken; write it as "\\u{code}", in quotes')
            self._events = iter(yaml.parse(self._text, Loader=_LOADER))
            return self._only_document()
        except _Stop:
            return None
        except yaml.MarkedYAMLError as error:
            self._complain(*(self._unclosed(error) or _syntax(error, self._text)))
            return None
        except yaml.YAMLError as error:
            self._complain(0, f"this is no YAML: {error}".splitlines()[0])
            return None

    def _unclosed(self, error: yaml.MarkedYAMLError) -> tuple[int, str] | None:
        """The bracket that is still open where the file ends, if that is what is wrong."""
        mark = error.problem_mark
        if not self._opened or mark is None or self._text[mark.index :].strip():
            return None
        opened = self._opened[-1]
        signs = "{}" if isinstance(opened, yaml.MappingStartEvent) else "[]"
        return _index(opened), f"the {signs[0]} that opens here is never closed; write {signs[1]} where it ends"

    def _only_document(self) -> Node:
        next(self._events)
        first = next(self._events)
        if isinstance(first, yaml.StreamEndEvent):
            return Node(self._place(0), {})
        event = next(self._events)
        root = self._node(event, (), 1)
        next(self._events)
        after = next(self._events)
        if isinstance(after, yaml.DocumentStartEvent):
            self._stop(_index(after), "a second document starts here; write it into a file of its own")
        if root.value is None:
            return Node(self._place(0), {})
        if not isinstance(root.value, dict):
            self._stop(_index(event), f"expected keys such as routes:, got {shown_value(root.data(written=True))}")
        return root

    def _place(self, index: int) -> Place:
        line = bisect_right(self._starts, index) - 1
        return Place(str(self._file), line + 1, index - self._starts[line] + 1, self._lines[line])

    def _complain(self, index: int, text: str, loc: Loc = ()) -> None:
        self._complaints.append(Complaint(self._place(index), subject_of(loc), text))

    def _stop(self, index: int, text: str, loc: Loc = ()) -> NoReturn:
        self._complain(index, text, loc)
        raise _Stop

    def _node(self, event: Any, loc: Loc, depth: int) -> Node:
        index = _index(event)
        if depth > _DEEPEST:
            self._stop(index, f"nested deeper than {_DEEPEST} levels")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, loc, depth)
        self._refuse_tag(event, loc)
        if event.anchor:
            self._anchors[event.anchor] = None
        if in_brackets := getattr(event, "flow_style", False):
            self._opened.append(event)
        match event:
            case yaml.MappingStartEvent():
                node = self._node_of_mapping(event, loc, depth)
            case yaml.SequenceStartEvent():
                node = self._node_of_list(event, loc, depth)
            case _:
                node = self._node_of_scalar(event, loc)
        if in_brackets:
            self._opened.pop()
        node.size += sum(child.size for child in node.children())
        node.height += max((child.height for child in node.children()), default=0)
        if event.anchor:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, event: Any, loc: Loc, depth: int) -> Node:
        index = _index(event)
        if event.anchor not in self._anchors:
            self._stop(index, f"no value above is marked &{event.anchor}; a text that starts with * needs quotes", loc)
        known = self._anchors[event.anchor]
        if known is None:
            self._stop(index, f"*{event.anchor} stands inside of the value that it means", loc)
        self._by_aliases += known.size
        if self._by_aliases > _MOST_BY_ALIASES:
            self._stop(index, f"aliases repeat more than {_MOST_BY_ALIASES} values; write fewer of them", loc)
        if depth + known.height - 1 > _DEEPEST:
            self._stop(index, f"nested deeper than {_DEEPEST} levels")
        return replace(known, place=self._place(index))

    def _refuse_tag(self, event: Any, loc: Loc) -> None:
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            advice = "for text use quotes" if tag in ("!", "!!str") else "write the value alone"
            self._complain(_index(event), f"the tag {tag} is not taken; {advice}", loc)

    def _node_of_list(self, event: Any, loc: Loc, depth: int) -> Node:
        items: list[Node] = []
        while not isinstance(item := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(item, (*loc, len(items)), depth + 1))
        return Node(self._place(_index(event)), items)

    def _node_of_mapping(self, event: Any, loc: Loc, depth: int) -> Node:
        entries: dict[str, Entry] = {}
        while not isinstance(item := next(self._events), yaml.MappingEndEvent):
            key = self._key(item, loc, depth)
            node = self._node(next(self._events), (*loc, key), depth + 1)
            place = self._place(_index(item))
            if key in entries:
                text = f"duplicate key {quoted(key)}; it is already written at {entries[key].key}"
                self._complaints.append(Complaint(place, subject_of((*loc, key)), text))
            else:
                entries[key] = Entry(place, node)
        return Node(self._place(_index(event)), entries)

    def _key(self, event: Any, loc: Loc, depth: int) -> str:
        index = _index(event)
        if not isinstance(event, yaml.ScalarEvent):
            if self._text[index - 1 : index + 1] == "{{" and index:
                self._stop(index - 1, 'a value that starts with a template needs quotes: "{{ … }}"', loc)
            self._stop(index, "expected text as a key, got a list, a mapping or an alias", loc)
        self._refuse_tag(event, loc)
        if event.anchor:
            self._anchors[event.anchor] = Node(self._place(index), event.value, event.value)
        if event.style:
            return str(event.value)
        if event.value == "<<":
            self._complain(index, "merge keys (<<) are not taken; write the keys themselves, or use an alias", loc)
        elif not event.value:
            self._complain(index, "a key is missing before the colon", loc)
        elif not isinstance(_core(event.value), str):
            self._complain(
                index, f'expected text as a key, got {event.value}; write it in quotes: "{event.value}"', loc
            )
        return str(event.value)

    def _node_of_scalar(self, event: Any, loc: Loc) -> Node:
        index = _index(event)
        written = event.value if event.style else _core(event.value)
        if isinstance(written, int) and len(event.value) > _MOST_DIGITS:
            self._complain(index, f"a number of more than {_MOST_DIGITS} digits; for text use quotes", loc)
        if not isinstance(written, str) or "${" not in written:
            return Node(self._place(index), written, written)
        value, secrets, problems = self._references.put_into(written)
        for problem in problems:
            self._complaints.append(Complaint(self._place(index), subject_of(loc), problem, of_reference=True))
        alone = len(secrets) == 1 and secrets[0][0] == written
        return Node(self._place(index), Referenced(value) if alone else value, written, secrets)


def _index(event: Any) -> int:
    return int(event.start_mark.index)


_NAMED: dict[str, Scalar] = dict.fromkeys(("", "~", "null", "Null", "NULL"))
_NAMED |= dict.fromkeys(("true", "True", "TRUE"), True) | dict.fromkeys(("false", "False", "FALSE"), False)
_NAMED |= {f"{sign}{inf}": float(f"{sign}inf") for sign in ("", "+", "-") for inf in (".inf", ".Inf", ".INF")}
_NAMED |= dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan"))
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def _core(text: str) -> Scalar:
    """What a plain scalar means. Source: YAML 1.2.2 section 10.3.2, core schema."""
    if text in _NAMED:
        return _NAMED[text]
    if _INT.fullmatch(text):
        if len(text) > _MOST_DIGITS:
            return 0
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    return float(text) if _FLOAT.fullmatch(text) else text


# In the words of libyaml and of its Python twin, which differ: where to point (at what began there, or at the place
# of the surprise) and what to say.
_SYNTAX: tuple[tuple[str, Literal["start", "here"], str], ...] = (
    ("while scanning a tag", "start", "tags (!) are not taken; a text that starts with ! needs quotes"),
    ("while parsing a tag", "start", "tags (!) are not taken; a text that starts with ! needs quotes"),
    ("undefined tag handle", "here", "tags (!) are not taken; a text that starts with ! needs quotes"),
    ("while scanning an alias", "start", "a text that starts with * needs quotes"),
    ("while scanning an anchor", "start", "a text that starts with & needs quotes"),
    ("unexpected end of stream", "start", "the quote that opens here is never closed"),
    ("unexpected document", "start", "the quote that opens here is not closed before the document ends"),
    ("unknown escape character", "here", "no such escape in double quotes; for \\ write \\\\ or use single quotes"),
    ("invalid Unicode character escape", "here", "this escape is no character"),
    ("decimal number", "here", "expected hexadecimal digits; for \\ write \\\\ or use single quotes"),
    ("mapping keys are not", "here", 'a "? " can\'t stand here; a text that starts with it needs quotes'),
    ("found unexpected ':'", "here", "a text with : inside of { } or [ ] needs quotes"),
    ("mapping values are not", "here", 'a key can\'t stand here: look at indentation, or quote a text with ": "'),
    ("sequence entries are not allowed", "here", 'a "- " can\'t stand here; start the list on a line of its own'),
    ("could not find expected ':'", "start", "expected a key with a colon, such as path: /orders"),
    ("while parsing a block mapping", "here", "expected a key: look at indentation, or quote the whole text"),
    ("while parsing a block collection", "here", 'expected "- " as on the lines before; look at indentation'),
    ("while parsing a flow sequence", "here", 'expected "," or "]" to go on with the list or to close it'),
    ("while parsing a flow mapping", "here", 'expected "," or "}" to go on with the mapping or to close it'),
    ("while scanning a block scalar", "start", "expected the end of the line after | or >, and then indented text"),
    ("document start", "here", "expected the end of the document; is there a bracket too many?"),
    ("directive", "here", "directives (%) are not taken; leave the line out"),
    ("incompatible YAML", "here", "expected YAML 1.2; leave the line out"),
    ("node content", "here", "expected a value"),
)


def _syntax(error: yaml.MarkedYAMLError, text: str) -> tuple[int, str]:
    """Where a syntax error is, as an index, and what to say of it."""
    mark = error.problem_mark or error.context_mark
    index = min(mark.index if mark else 0, len(text))
    found = text[index : index + 1]
    if found == "\t":
        return index, "a tab can't indent; use spaces"
    if "cannot start any token" in (error.problem or ""):
        return index, f"a text that starts with {found} needs quotes"
    if text[index - 1 : index + 1] == "${":
        return index - 1, 'inside of { } and [ ] a reference needs quotes: "${env:NAME}"'
    for words, where, sentence in _SYNTAX:
        if words in f"{error.context or ''} {error.problem or ''}":
            start = error.context_mark
            if start is None:
                return index, sentence
            if "flow" in words:
                return index, f"{sentence}; it opens at line {start.line + 1}, column {start.column + 1}"
            return min(start.index, len(text)) if where == "start" else index, sentence
    return index, f"this is no YAML: {error.problem}"

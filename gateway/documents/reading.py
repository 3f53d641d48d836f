"""Reads YAML files into documents: YAML 1.2 core with text keys, and without tags, merge keys and large aliases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gateway.documents.complaints import Complaint, Complaints, Place
from gateway.documents.document import Document, Entry, Node
from gateway.documents.nodes import Builder
from gateway.units import shown_size

_LARGEST_FILE_BYTES = 4 * 1024**2


def read(path: Path, environment: Mapping[str, str] | None = None) -> Document:
    """The document of a file, or of the `*.yaml` files of a folder, merged in the order of their names.

    Tests of routes (`*.test.yaml`) and hidden files are no part of it. Relative `${file:}` paths start at the folder
    of the file that they stand in.

    Raises:
        Complaints: it can't be read, is no YAML of the kind that is taken here, or a secret is not there.
    """
    complaints: list[Complaint] = []
    roots = []
    for file in _files(path, complaints):
        text = _text(file, complaints)
        root = None if text is None else Builder(file, text, environment, complaints).root()
        if root is not None:
            roots.append(root)
    return _document(roots, complaints)


def parse(text: str, file: Path, environment: Mapping[str, str] | None = None) -> Document:
    """The document of a text that stands in this file, or would; otherwise as `read`."""
    complaints: list[Complaint] = []
    root = Builder(file, text, environment, complaints).root()
    return _document([root] if root else [], complaints)


def _document(roots: list[Node], complaints: list[Complaint]) -> Document:
    root = _merged(roots, complaints) if roots else None
    if root is None:
        raise Complaints(complaints)
    if complaints:
        only_references = all(complaint.of_reference for complaint in complaints)
        raise Complaints(complaints, Document(root) if only_references else None)
    return Document(root)


def _files(path: Path, complaints: list[Complaint]) -> list[Path]:
    if path.is_file():
        return [path]
    files = []
    if path.is_dir():
        files = sorted(
            file
            for file in path.glob("*.yaml")
            if file.is_file() and not file.name.startswith(".") and not file.name.endswith(".test.yaml")
        )
    if not files:
        found = "no file in this folder is called *.yaml" if path.is_dir() else "there is no such file or folder"
        complaints.append(Complaint(Place(str(path)), "", f"{found}; write one, or start with: gateway init"))
    return files


def _text(file: Path, complaints: list[Complaint]) -> str | None:
    try:
        with file.open("rb") as stream:
            content = stream.read(_LARGEST_FILE_BYTES + 1)
        if len(content) <= _LARGEST_FILE_BYTES:
            return content.decode("utf-8-sig")
        problem = f"the file is larger than {shown_size(_LARGEST_FILE_BYTES)}; write several files into a folder"
    except OSError as error:
        problem = f"the file can't be read: {error.strerror}"
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problem = f"line {line} is not UTF-8; save the file as UTF-8"
    complaints.append(Complaint(Place(str(file)), "", problem))
    return None


def _merged(roots: list[Node], complaints: list[Complaint]) -> Node:
    if len(roots) == 1:
        return roots[0]
    merged: dict[str, Entry] = {}
    for root in roots:
        assert isinstance(root.value, dict)
        for key, entry in root.value.items():
            first = merged.get(key)
            if first is None or first.node.value is None:
                merged[key] = entry
            elif isinstance(first.node.value, dict) and isinstance(entry.node.value, dict):
                joined = _joined(key, first.node.value, entry.node.value, complaints)
                merged[key] = Entry(first.key, Node(first.node.place, joined))
            elif entry.node.value is not None and (key != "version" or first.node.value != entry.node.value):
                complaints.append(_second(key, first, entry))
    return Node(roots[0].place, merged)


def _joined(
    section: str, first: dict[str, Entry], second: dict[str, Entry], complaints: list[Complaint]
) -> dict[str, Entry]:
    complaints.extend(
        _second(f"{section}.{name}", first[name], entry) for name, entry in second.items() if name in first
    )
    return first | {name: entry for name, entry in second.items() if name not in first}


def _second(subject: str, first: Entry, second: Entry) -> Complaint:
    return Complaint(second.key, subject, f"it is already written at {first.key}; keep one of the two")

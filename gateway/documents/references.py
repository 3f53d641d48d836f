"""References to secrets: `${env:NAME}` and `${file:/path}` in text values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from gateway.units import shown_size

_LARGEST_SECRET_BYTES = 64 * 1024
_REFERENCE = re.compile(r"(\$?)\$\{(?!\{)([^{}]*)(\}?)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class References:
    """`${env:NAME}` and `${file:/path}` in text values. `$${` writes `${`; `${{` is a dollar before a template."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = environment

    def put_into(self, text: str) -> tuple[str, tuple[tuple[str, str], ...], list[str]]:
        """The text with its secrets, the references in it each with its secret, and what is wrong with them."""
        secrets: list[tuple[str, str]] = []
        problems: list[str] = []

        def put(found: re.Match[str]) -> str:
            escaped, inside, closed = found.groups()
            if escaped:
                return found[0][1:]
            try:
                secret = self._secret(inside, closed=bool(closed))
            except ValueError as problem:
                problems.append(str(problem))
                return found[0]
            secrets.append((found[0], secret))
            return secret

        return _REFERENCE.sub(put, text), tuple(secrets), problems

    def _secret(self, inside: str, *, closed: bool) -> str:
        scheme, colon, name = inside.partition(":")
        if not closed:
            raise ValueError(f"${{{inside[:40]} is never closed; write ${{env:NAME}}, or $${{ for the text itself")
        if colon and scheme == "env" and _VARIABLE.fullmatch(name):
            return self._variable(name)
        if colon and scheme == "file" and name:
            return self._content(name)
        expected = f"${{env:{inside}}}" if _VARIABLE.fullmatch(inside) else "${env:NAME} or ${file:/path}"
        raise ValueError(f"${{{inside}}} is no reference; write {expected}, or $${{{inside}}} for the text itself")

    def _variable(self, name: str) -> str:
        value = self._environment.get(name)
        if value is None:
            raise ValueError(f"the environment variable {name} is not set; set it, or use ${{file:/path}}")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"the environment variable {name} is not UTF-8") from None
        return value

    def _content(self, name: str) -> str:
        path = self._folder / name
        try:
            with path.open("rb") as stream:
                content = stream.read(_LARGEST_SECRET_BYTES + 1)
            text = content.decode()
        except UnicodeDecodeError:
            raise ValueError(f"the file {path} is not UTF-8") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no file can have this name"
            raise ValueError(f"the file {path} can't be read: {reason}") from None
        if len(content) > _LARGEST_SECRET_BYTES:
            raise ValueError(
                f"the file {path} is larger than {shown_size(_LARGEST_SECRET_BYTES)}, the most for a secret"
            )
        return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text

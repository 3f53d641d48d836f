"""`Settings`, the base of every component, and the field types that its fields are made of.

Field types read the text of `routes.yaml` and hold a checked value; past this point nothing is validated again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PlainSerializer,
    PlainValidator,
    SecretStr,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import CoreSchema

from gateway.exact import exact
from gateway.units import Duration, Rate, Size, duration, rate, size

__all__ = [
    "Address",
    "AddressField",
    "ClientTls",
    "Duration",
    "ExistingFile",
    "Folder",
    "Listen",
    "ListenAt",
    "Loading",
    "Rate",
    "Secret",
    "ServerTls",
    "Settings",
    "Size",
    "Url",
    "duration",
    "loading",
    "rate",
    "size",
]


class Settings(BaseModel):
    """A frozen settings class: unknown keys are errors, each field has a description, equal settings are equal.

    A number or a truth value has to be one: `"5"` and `no` are text, and refused where they stand for it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, ser_json_bytes="base64")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return exact(handler(source))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Loading:
    """What a field may need to know of the file that it stands in. Passed as pydantic's validation context."""

    folder: Path = field(default_factory=Path.cwd)
    """Where relative paths start."""
    names: frozenset[str] = frozenset()
    """Names that expressions may use here beside the usual ones, such as the `as:` of a `map`."""
    connections: Mapping[str, Any] = field(default_factory=dict)
    """The entries of `connections:`, by name: settings objects."""
    listeners: Mapping[Address, ServerTls] = field(default_factory=dict)
    """The TLS of `listeners:` entries, by address."""
    files: dict[Path, str] = field(default_factory=dict)
    """The files that components named, with a digest of what they held at load: a change of theirs is a change."""
    used: set[str] = field(default_factory=set)
    """Connections (`connections.<name>`) and listeners (`listeners.<address>`) that some component named."""


def loading(info: ValidationInfo) -> Loading:
    """The Loading of this validation; outside of a file, relative paths start at the working directory."""
    return info.context if isinstance(info.context, Loading) else Loading()


class Address(NamedTuple):
    """Where to listen or to connect: `127.0.0.1:8081`, `[::1]:8081`, `erp.example:9100`. Port 0: any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _address(text: object) -> Address:
    if isinstance(text, Address):
        return text
    if isinstance(text, str):
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        host = host[1:-1] if bracketed else host
        if (
            colon
            and host
            and port.isascii()
            and port.isdigit()
            and len(port) <= 5
            and int(port) <= 65535
            and (bracketed or ":" not in host)
        ):
            return Address(host, int(port))
    shown = f'"{text}"' if isinstance(text, str) else repr(text)
    raise ValueError(f"expected an address with a port such as 127.0.0.1:8081 or [::1]:8081, got {shown}")


AddressField = Annotated[
    Address,
    PlainValidator(_address),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"title": "address", "type": "string", "pattern": r"^.+:\d{1,5}$", "examples": ["127.0.0.1:8081"]}),
]

Secret = SecretStr
"""A value that is never printed. In routes.yaml write `${env:NAME}` or `${file:/run/secrets/name}`."""


def _in_folder(path: Path, info: ValidationInfo) -> Path:
    try:
        return loading(info).folder / path.expanduser()
    except RuntimeError as error:  # ~somebody who is not there
        raise ValueError(f"{path}: there is no such home folder; write the whole path") from error


def _exists(path: Path, info: ValidationInfo) -> Path:
    whole = _in_folder(path, info)
    if not whole.is_file():
        raise ValueError(f"no such file: {path}; relative paths start at the folder of the file that names them")
    try:
        loading(info).files[whole] = hashlib.sha256(whole.read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}; may this process read it?") from error
    return whole


ExistingFile = Annotated[Path, AfterValidator(_exists)]
"""A file that must be there at load. Relative to the file that names it."""
Folder = Annotated[Path, AfterValidator(_in_folder)]
"""A folder or file that may be made later. Relative to the file that names it."""


def _url(schemes: tuple[str, ...]) -> Any:
    def checked(text: str) -> str:
        parts = urlsplit(text)
        if parts.username is not None or parts.password is not None:
            raise ValueError("a URL holds no user and password: write them as username: and password:")
        try:
            _ = parts.port
        except ValueError:
            raise ValueError(f'expected a port of 65535 at most in the URL, got "{text}"') from None
        if parts.scheme not in schemes or not parts.hostname:
            raise ValueError(f'expected a URL such as {schemes[0]}://host/…, got "{text}"')
        return text

    return checked


def Url(*schemes: str) -> Any:  # noqa: N802 - reads as a type where it is used
    """The field type of a constant URL with one of these schemes and without user and password."""
    return Annotated[
        str,
        AfterValidator(_url(schemes)),
        WithJsonSchema({"title": "URL", "type": "string", "examples": [f"{schemes[0]}://host"]}),
    ]


class ServerTls(Settings):
    """TLS of a listener: at least 1.2; with `client_ca`, every client must show a certificate that it signed."""

    certificate: ExistingFile = Field(description="PEM file with the certificate chain, leaf first")
    private_key: ExistingFile = Field(description="PEM file with the private key of the certificate")
    client_ca: ExistingFile | None = Field(None, description="PEM file: clients must show a certificate signed by it")


class ClientTls(Settings):
    """TLS of a client: at least 1.2, the peer's certificate and host name are always checked."""

    ca: ExistingFile | None = Field(None, description="PEM file of the authorities to trust; default: the system's")
    certificate: ExistingFile | None = Field(None, description="PEM file with our own certificate chain, if asked for")
    private_key: ExistingFile | None = Field(None, description="PEM file with the private key of our certificate")
    server_name: str | None = Field(None, description="the name that the peer's certificate must carry; default: host")


class ListenAt(NamedTuple):
    """An address to listen on, with the TLS that `listeners:` gives it."""

    address: Address
    tls: ServerTls | None = None

    def __str__(self) -> str:
        return str(self.address)


def _listen(value: object, info: ValidationInfo) -> ListenAt:
    if isinstance(value, ListenAt):
        return value
    address = _address(value)
    context = loading(info)
    context.used.add(f"listeners.{address}")
    return ListenAt(address, context.listeners.get(address))


Listen = Annotated[
    ListenAt,
    PlainValidator(_listen),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"title": "address", "type": "string", "pattern": r"^.+:\d{1,5}$", "examples": ["127.0.0.1:8081"]}),
]
"""The `listen:` setting of a server: an address, joined at load with its entry of `listeners:`."""

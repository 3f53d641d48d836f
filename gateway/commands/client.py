"""The REST API of a running gateway, as the commands use it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from gateway.commands.output import printable
from gateway.errors import ConfigError, PeerError

if TYPE_CHECKING:
    import httpx2

    from gateway.language import Gateway

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="The configuration that runs: says where the API and its token are.")
]
UrlOption = Annotated[str | None, typer.Option("--url", envvar="GATEWAY_URL", help="The address of the API instead.")]
TokenOption = Annotated[
    Path | None, typer.Option("--token-file", help="The file with the API's token; or set GATEWAY_TOKEN to the token.")
]
TIMEOUT_S = 30.0


class Api:
    """Calls of one running gateway. Every call raises PeerError when it is not answered, or answered by a problem."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self._headers = {"authorization": f"Bearer {token}", "user-agent": "gateway-cli"}

    def _client(self) -> httpx2.Client:
        """One for each call: what a command asks is little, and nothing stays open."""
        import httpx2

        # A proxy of the environment is for the outside; the API is on loopback, or behind a proxy that --url names.
        return httpx2.Client(base_url=self.url, headers=self._headers, timeout=TIMEOUT_S, trust_env=False)

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        """The JSON of an answer. Parameters that are None are left out."""
        return self._json(self.call("GET", path, query))

    def post(self, path: str, value: Any = None, *, timeout_s: float | None = TIMEOUT_S) -> Any:
        """Posts JSON, gives the JSON of the answer. timeout_s: None waits as long as it takes."""
        return self._json(self.call("POST", path, json=value or {}, timeout=timeout_s))

    def delete(self, path: str) -> Any:
        """Deletes, gives the JSON of the answer."""
        return self._json(self.call("DELETE", path))

    def content(self, path: str, query: Mapping[str, Any] | None = None) -> bytes:
        """The bytes of a body that is kept there."""
        response = self.call("GET", path, query)
        if not response.headers.get("content-disposition", "").startswith("attachment"):
            raise self._stranger(response)
        return response.content

    def call(self, method: str, path: str, query: Mapping[str, Any] | None = None, **more: Any) -> httpx2.Response:
        """An answer that is not a problem."""
        params = {name: value for name, value in (query or {}).items() if value is not None}
        with self._heard(), self._client() as client:
            response = client.request(method, path, params=params, **more)
        self._check(response)
        return response

    @contextmanager
    def events(self, route: str | None) -> Iterator[Iterator[str]]:
        """The lines of the stream of events."""
        import httpx2

        query = {} if route is None else {"route": route}
        timeout = httpx2.Timeout(TIMEOUT_S, read=60.0)  # a heartbeat comes every 15 s
        with (
            self._heard(),
            self._client() as client,
            client.stream("GET", "/api/v1/events", params=query, timeout=timeout) as response,
        ):
            if response.is_error:
                response.read()
            self._check(response)
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise self._stranger(response)
            yield response.iter_lines()

    @contextmanager
    def _heard(self) -> Iterator[None]:
        import httpx2

        try:
            yield
        except httpx2.TimeoutException as error:
            raise PeerError(f"{self.url} gave no answer in time") from error
        except httpx2.ConnectError as error:
            raise PeerError(
                f"{self.url} does not answer; is the gateway running? start it with: gateway run"
            ) from error
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise PeerError(f"{self.url} broke off: {error}") from error

    def _check(self, response: httpx2.Response) -> None:
        if response.headers.get("content-type", "").startswith("application/problem+json"):
            problem = response.json()
            raise PeerError(str(problem.get("detail") or problem.get("title")))

    def _json(self, response: httpx2.Response) -> Any:
        if response.is_error or response.headers.get("content-type") != "application/json":
            raise self._stranger(response)
        return response.json()

    def _stranger(self, response: httpx2.Response) -> PeerError:
        """What answers there is no API of a gateway, whose errors are all problems."""
        kind = response.headers.get("content-type", "no content type")
        return PeerError(
            f"{self.url} answers, but not as a gateway's API does: {response.status_code}, {printable(kind)}; "
            "look at gateway.api.listen, or --url"
        )


def receipt(response: httpx2.Response) -> dict[str, Any] | None:
    """What the gateway itself says of a message that was posted; None: the answer is the reply of a target."""
    if response.headers.get("content-type") != "application/json":
        return None
    told = response.json()
    ours = isinstance(told, dict) and "id" in told and ("status_url" in told or told.get("status") == "accepted")
    return told if ours else None


def connected(config: Path, url: str | None, token_file: Path | None) -> Api:
    """The API that the options and the environment name, else that of the configuration.

    Raises:
        ConfigError: nothing says where it is, or there is no token.
    """
    if url is not None and not _is_address(url):
        raise ConfigError(f"--url, or GATEWAY_URL: expected one such as http://127.0.0.1:8080, got {url!r:.100}")
    if token_file is not None:
        token = _token_in(token_file)
    else:
        token = _token(os.environ.get("GATEWAY_TOKEN", ""), "GATEWAY_TOKEN")
    if url is not None and token:
        return Api(url, token)
    if not config.exists():
        missing = "where the gateway's API is" if url is None else f"the token of {url}"
        ways = "--url with --token-file" if url is None else "--token-file or GATEWAY_TOKEN"
        raise ConfigError(
            f"{config}: there is no such file, which would say {missing}; name it with --config, or {ways}"
        )
    settings = _settings(config)
    if url is None:
        if settings.api.listen.port == 0:
            raise ConfigError("gateway.api.listen has port 0, so that only its log knows the port; say it with --url")
        url = f"http://{settings.api.listen}"
    return Api(url, token or _token_in(settings.data / "admin.token"))


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # its port is no number, or none that there is
        return False


def _token_in(file: Path) -> str:
    try:
        return _token(file.read_text("ascii"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no token"
        text = f"the token file {file} can't be read: {reason}; the gateway makes it when it starts"
        raise ConfigError(f"{text}; name another with --token-file, or set GATEWAY_TOKEN") from error


def _token(text: str, where: str) -> str:
    """The token in this text; of what is none nothing is shown, as it may be another secret."""
    token = text.strip()
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ConfigError(f"{where} holds no token; expected one word, as the gateway writes it into admin.token")
    return token


def _settings(config: Path) -> Gateway:
    """What the file says of the API and the data folder. Of the rest, and of secrets, nothing is needed."""
    from pydantic import ValidationError

    from gateway.documents import read
    from gateway.language import Gateway
    from gateway.settings import Loading

    document = read(config, _Lenient())
    written = document.data.get("gateway")
    known = {key: written[key] for key in ("data", "api") if key in written} if isinstance(written, dict) else {}
    try:
        context = Loading(folder=document.folder(("gateway",)))
        return Gateway.model_validate({**Gateway.defaults, **known}, context=context)
    except ValidationError as error:
        raise ConfigError(f"{config}: what it says of the gateway is wrong; see: gateway check {config}") from error


class _Lenient(Mapping[str, str]):
    """The environment, in which everything is set: an operator's shell need not have the gateway's secrets."""

    def __getitem__(self, name: str) -> str:
        return os.environ.get(name, "")

    def __iter__(self) -> Iterator[str]:
        return iter(os.environ)

    def __len__(self) -> int:
        return len(os.environ)

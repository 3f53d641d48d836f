"""The base of every component and the types of its fields: read from text, checked, equal by value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, ValidationError

from gateway import Address, ClientTls, Duration, Limits, ListenAt, Secret, ServerTls, Settings, Url, duration
from gateway.exact import Referenced
from gateway.settings import AddressField, ExistingFile, Folder, Listen, Loading


class Fields(Settings):
    """One of each."""

    address: AddressField | None = Field(None, description="an address")
    listen: Listen | None = Field(None, description="where to listen")
    url: Url("mqtt", "mqtts") | None = Field(None, description="a URL")  # type: ignore[valid-type]
    file: ExistingFile | None = Field(None, description="a file")
    folder: Folder | None = Field(None, description="a folder")
    password: Secret | None = Field(None, description="a secret")


def read(context: Loading | None = None, **values: Any) -> Fields:
    return Fields.model_validate(values, context=context)


def refusal(context: Loading | None = None, **values: Any) -> str:
    with pytest.raises(ValidationError) as refused:
        read(context, **values)
    (error,) = refused.value.errors()
    return error["msg"].removeprefix("Value error, ")


# --- the base


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        read().address = None  # type: ignore[misc]


def test_unknown_keys_are_refused() -> None:
    assert refusal(addres="127.0.0.1:1") == "Extra inputs are not permitted"


def test_equal_settings_are_equal_and_one_key() -> None:
    one, other = read(address="127.0.0.1:1"), read(address="127.0.0.1:1")
    assert one == other
    assert len({one, other, read(address="127.0.0.1:2")}) == 2


# --- addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8081", Address("127.0.0.1", 8081)),
        ("[::1]:8081", Address("::1", 8081)),
        ("erp.example:9100", Address("erp.example", 9100)),
        ("localhost:0", Address("localhost", 0)),
        ("h:65535", Address("h", 65535)),
    ],
)
def test_an_address_has_a_host_and_a_port(text: str, address: Address) -> None:
    assert read(address=text).address == address
    assert str(address) == text


@pytest.mark.parametrize(
    "value",
    [
        "",
        "127.0.0.1",
        ":8081",
        "h:",
        "h:x",
        "h:65536",
        "h:-1",
        "h:+1",
        "::1:80",
        "h:٨",
        "[]:1",
        "h:" + "1" * 5000,
        8081,
    ],
    ids=lambda value: str(value)[:12],
)
def test_what_is_no_address_is_refused_with_an_example(value: Any) -> None:
    shown = f'"{value}"' if isinstance(value, str) else repr(value)
    assert (
        refusal(address=value) == f"expected an address with a port such as 127.0.0.1:8081 or [::1]:8081, got {shown}"
    )


def test_where_to_listen_is_joined_with_the_tls_of_its_address(tmp_path: Path) -> None:
    pem = tmp_path / "x.pem"
    pem.touch()
    tls = ServerTls(certificate=pem, private_key=pem)
    loading = Loading(listeners={Address("127.0.0.1", 1): tls})
    assert read(loading, listen="127.0.0.1:1").listen == ListenAt(Address("127.0.0.1", 1), tls)
    assert read(loading, listen="127.0.0.1:2").listen == ListenAt(Address("127.0.0.1", 2), None)
    assert loading.used == {"listeners.127.0.0.1:1", "listeners.127.0.0.1:2"}


def test_addresses_are_written_as_they_are_read() -> None:
    written = read(address="[::1]:1", listen="127.0.0.1:2").model_dump(mode="json", exclude_none=True)
    assert written == {"address": "[::1]:1", "listen": "127.0.0.1:2"}


# --- URLs


@pytest.mark.parametrize("text", ["mqtt://h", "mqtts://h:8883", "mqtt://[::1]:1883", "MQTT://h"])
def test_a_url_with_one_of_the_schemes_is_taken_as_it_is(text: str) -> None:
    assert read(url=text).url == text


@pytest.mark.parametrize("text", ["", "h", "http://h", "mqtt:", "mqtt://", "mqtt:///x", "://h"])
def test_another_url_is_refused_with_an_example(text: str) -> None:
    assert refusal(url=text) == f'expected a URL such as mqtt://host/…, got "{text}"'


@pytest.mark.parametrize("text", ["mqtt://user:hunter2@h", "mqtt://user@h", "http://user:hunter2@h", "mqtt://:x@h"])
def test_a_url_holds_no_user_and_password_and_the_refusal_does_not_show_them(text: str) -> None:
    assert refusal(url=text) == "a URL holds no user and password: write them as username: and password:"


@pytest.mark.parametrize("text", ["mqtt://h:65536", "mqtt://h:x"])
def test_a_url_has_a_port_that_there_can_be(text: str) -> None:
    assert refusal(url=text) == f'expected a port of 65535 at most in the URL, got "{text}"'


# --- files and secrets


def test_paths_start_at_the_folder_of_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_bytes(b"a")
    loading = Loading(folder=tmp_path)
    found = read(loading, file="a.pem", folder="later/on")
    assert (found.file, found.folder) == (tmp_path / "a.pem", tmp_path / "later/on")
    assert read(loading, file=str(tmp_path / "a.pem")).file == tmp_path / "a.pem"


def test_outside_of_a_file_paths_start_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read(folder="x").folder == tmp_path / "x"


@pytest.mark.parametrize("name", ["missing.pem", "."])
def test_a_file_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    assert refusal(Loading(folder=tmp_path), file=name) == (
        f"no such file: {name}; relative paths start at the folder of the file that names them"
    )


def test_a_file_that_can_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pem").touch()

    def denied(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert refusal(Loading(folder=tmp_path), file="a.pem") == (
        "a.pem can't be read: Permission denied; may this process read it?"
    )


def test_a_home_folder_that_is_not_there_is_refused() -> None:
    text = "~nobody-of-this-name/x: there is no such home folder; write the whole path"
    assert refusal(folder="~nobody-of-this-name/x") == text
    assert refusal(file="~nobody-of-this-name/x") == text


def test_what_a_file_held_at_load_is_remembered(tmp_path: Path) -> None:
    file = tmp_path / "a.pem"
    digests = []
    for content in (b"one", b"two", b"two"):
        file.write_bytes(content)
        loading = Loading(folder=tmp_path)
        read(loading, file="a.pem")
        digests.append(loading.files[file])
    assert digests[0] != digests[1] == digests[2]


def test_a_secret_is_never_shown() -> None:
    found = read(password="hunter2")
    assert found.password is not None
    assert found.password.get_secret_value() == "hunter2"
    for shown in (repr(found), str(found), found.model_dump_json(), str(found.model_dump())):
        assert "hunter2" not in shown


def test_tls_settings_are_one_key(tmp_path: Path) -> None:
    pem = tmp_path / "x.pem"
    pem.touch()
    assert len({ServerTls(certificate=pem, private_key=pem), ServerTls(certificate=pem, private_key=pem)}) == 1
    assert ClientTls() == ClientTls(ca=None)


class Exact(Settings):
    """Numbers and truth values in all the places where they may stand."""

    flag: bool = Field(default=False, description="a truth value")
    count: int | None = Field(None, ge=1, description="a number, or none")
    ratio: float = Field(0.5, description="a number with a fraction")
    counts: tuple[int, ...] = Field((), description="numbers")
    header: bool | tuple[str, ...] = Field(default=True, description="a truth value or names")
    wait: Duration = Field(duration("1s"), description="a unit")
    default: int = Field(1, description="a field called as a part of a schema is")


@pytest.mark.parametrize(
    "given",
    [
        {"flag": "no"},
        {"flag": "true"},
        {"flag": 1},
        {"count": "5"},
        {"count": 5.0},
        {"count": True},
        {"ratio": "0.5"},
        {"ratio": True},
        {"counts": ["5"]},
        {"header": "yes"},
        {"default": "1"},
        {"flag": Referenced("1")},
        {"count": Referenced("5.0")},
        {"count": Referenced("0")},
        {"ratio": Referenced("half")},
    ],
    ids=str,
)
def test_a_number_is_a_number_and_text_is_text(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Exact.model_validate(given)


def test_what_is_written_as_yaml_writes_it_is_taken() -> None:
    found = Exact.model_validate(
        {"flag": True, "count": 5, "ratio": 2, "counts": [1, 2], "header": ["a"], "wait": "5s"}
    )
    assert (found.flag, found.count, found.ratio, found.counts, found.header) == (True, 5, 2.0, (1, 2), ("a",))


def test_a_reference_may_give_a_number_or_a_truth_value() -> None:
    given = {"flag": "true", "count": "5", "ratio": "0.25", "counts": ["7"], "header": "false", "wait": "5s"}
    found = Exact.model_validate(
        {
            name: [Referenced(one) for one in value] if isinstance(value, list) else Referenced(value)
            for name, value in given.items()
        }
    )
    assert (found.flag, found.count, found.ratio, found.counts) == (True, 5, 0.25, (7,))
    assert (found.header, found.wait) == (False, 5.0)


@pytest.mark.parametrize("given", [{"header_count": "5"}, {"header_count": True}, {"json_depth": 5.0}], ids=str)
def test_limits_are_as_exact(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Limits.model_validate(given)
    assert Limits.model_validate({"header_count": Referenced("5")}).header_count == 5

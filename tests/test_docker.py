"""What can be seen of the image and of compose.yaml without a Docker engine."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapters import mqtt
from gateway import PeerError
from gateway.api import serving
from gateway.app import running
from gateway.config import load
from gateway.testing import FakeHost, arriving, opened, until
from tests.brokers.mosquitto import Mosquitto
from tests.brokers.rabbitmq import RabbitMq, rabbitmq, rabbitmq_process
from tests.playground import ROOT, Playground

__all__ = ["rabbitmq", "rabbitmq_process"]

DOCKER = ROOT / "docker"
ROUTES = DOCKER / "gateway/routes.yaml"
PASSWORDS = {"RABBITMQ_PASSWORD": "rabbit-secret", "MQTT_PASSWORD": "mqtt-secret"}


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest) for line in lines if line.strip() for word, _, rest in [line.strip().partition(" ")]]


def arguments(word: str) -> list[str]:
    return [rest for found, rest in instructions() if found == word]


def compose() -> dict[str, Any]:
    document = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


SERVICES: dict[str, dict[str, Any]] = compose()["services"]


def test_all_that_the_image_copies_is_there_and_let_in() -> None:
    let_in = {
        line.removeprefix("!") for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if "!" in line
    }
    for copied in arguments("COPY"):
        if copied.startswith("--from"):
            continue
        *sources, _ = shlex.split(copied)
        assert set(sources) <= let_in
        assert all((ROOT / source).exists() for source in sources)


def test_the_image_runs_without_root() -> None:
    (user,) = arguments("USER")
    assert user.isdigit()
    assert int(user) > 0
    words = [word for word, _ in instructions()]
    assert words.index("USER") < words.index("ENTRYPOINT")


def test_the_image_installs_what_was_locked_by_hash() -> None:
    runs = "\n".join(arguments("RUN"))
    assert "--require-hashes" in runs
    assert "requirements.lock" in runs
    assert "--no-index" in runs


async def health_check(place: Playground) -> int:
    """The exit code of the image's health check, asked where Docker's configuration names a proxy that is not there."""
    (check,) = arguments("HEALTHCHECK")
    python, *rest = yaml.safe_load(place.mapped(check[check.index("[") :]))
    assert python == "python"
    proxy = f"http://127.0.0.1:{place.port(3128)}"
    check_run = await asyncio.create_subprocess_exec(
        sys.executable,
        *rest,
        env={**os.environ, "http_proxy": proxy, "HTTP_PROXY": proxy, "no_proxy": "", "NO_PROXY": ""},
        stderr=asyncio.subprocess.DEVNULL,
    )
    return await check_run.wait()


async def test_the_health_check_of_the_image_asks_the_gateway_and_no_proxy(tmp_path: Path) -> None:
    place = Playground(tmp_path)
    (tmp_path / "routes.yaml").write_text(
        place.mapped("version: 1\ngateway: {api: {listen: 127.0.0.1:8080}}\nroutes: {none: {from: memory, to: drop}}\n")
    )
    async with running(load(tmp_path / "routes.yaml")) as app, serving(app):
        assert await health_check(place) == 0
    assert await health_check(place) == 1


def test_commands_inside_find_the_routes_without_being_told() -> None:
    (folder,) = arguments("WORKDIR")[1:]
    assert f"docker/gateway {folder}" in arguments("COPY")
    assert f"./gateway:{folder}:ro" in SERVICES["gateway"]["volumes"], "a reload must see a new file"
    assert yaml.safe_load(arguments("CMD")[0]) == ["run"]


def test_nothing_but_the_gateway_writes_to_its_data() -> None:
    (made,) = [rest for rest in arguments("RUN") if "useradd" in rest]
    assert "--no-create-home" in made, "expected no .bashrc of the distribution in the volume"
    assert re.search(r"install --directory --owner gateway --group gateway --mode 0700 /var/lib/gateway$", made)
    assert arguments("VOLUME") == ["/var/lib/gateway"]


def test_no_secret_is_in_the_image() -> None:
    assert not [rest for rest in arguments("ENV") + arguments("ARG") if re.search(r"pass|secret|token", rest, re.I)]


@pytest.mark.parametrize("image", [*arguments("FROM"), *(each["image"] for each in SERVICES.values())])
def test_images_are_pinned_by_name(image: str) -> None:
    name = image.split()[0]
    assert re.search(r":\d+\.\d+", name), f"{name} names no version"


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_ports_are_open_on_loopback_alone(service: str) -> None:
    assert SERVICES[service]["ports"]
    for port in SERVICES[service]["ports"]:
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


def test_passwords_have_no_defaults() -> None:
    text = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    for name in PASSWORDS:
        used = re.findall(rf"(?<!\$)\$\{{{name}(.*?)\}}", text)
        assert used
        assert all(rest.startswith(":?") for rest in used), "expected ${NAME:?why}, which refuses to start without it"
    literal = [
        value
        for service in SERVICES.values()
        for key, value in service["environment"].items()
        if "PASS" in key and not value.startswith("${")
    ]
    assert literal == []


def test_files_that_are_mounted_are_there_and_volumes_declared() -> None:
    for service in SERVICES.values():
        for mounted in service["volumes"]:
            source = mounted.partition(":")[0]
            assert (DOCKER / source).exists() if source.startswith("./") else source in compose()["volumes"]


def test_a_password_file_of_compose_stays_out_of_the_repository() -> None:
    assert "/docker/.env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_volumes_of_the_broker_images_have_a_name_or_are_memory() -> None:
    """What an image declares and compose.yaml does not name is left behind by each `down`, without a name."""
    declared = {"mosquitto": {"/mosquitto/data", "/mosquitto/log"}, "rabbitmq": {"/var/lib/rabbitmq"}}
    for service, folders in declared.items():
        mounted = {volume.split(":")[1] for volume in SERVICES[service]["volumes"]}
        assert folders <= mounted | set(SERVICES[service].get("tmpfs", []))


def test_the_gateway_may_do_nothing_but_its_work() -> None:
    gateway = SERVICES["gateway"]
    assert gateway["read_only"] is True
    assert gateway["cap_drop"] == ["ALL"]
    assert (DOCKER / gateway["build"]["context"] / gateway["build"]["dockerfile"]).resolve() == DOCKER / "Dockerfile"


def test_a_stop_leaves_the_gateway_its_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, password in PASSWORDS.items():
        monkeypatch.setenv(name, password)
    grace_s = load(ROUTES).gateway.grace
    assert int(SERVICES["gateway"]["stop_grace_period"].removesuffix("s")) > grace_s


def test_ports_of_compose_are_those_of_the_routes() -> None:
    routes = ROUTES.read_text(encoding="utf-8")
    inside = {port.rpartition(":")[2] for port in SERVICES["gateway"]["ports"]}
    assert set(re.findall(r"0\.0\.0\.0:(\d+)", routes)) == inside
    assert set(" ".join(arguments("EXPOSE")).split()) == inside


def put_mosquitto(folder: Path) -> Mosquitto:
    """Debian's Mosquitto with docker/mosquitto.conf, and the password file that compose.yaml makes."""
    broker = Mosquitto(folder)
    text = (DOCKER / "mosquitto.conf").read_text(encoding="utf-8")
    own = folder / "mosquitto"
    text = text.replace("/mosquitto/data/", f"{own}/").replace("listener 1883", f"listener {broker.port} 127.0.0.1")
    passwords = own / "passwords"
    passwords.touch(mode=0o600)
    program = shutil.which("mosquitto_passwd")
    assert program is not None
    subprocess.run([program, "-b", str(passwords), "gateway", PASSWORDS["MQTT_PASSWORD"]], check=True)
    (own / "mosquitto.conf").write_text(text + f"user {own.owner()}\nlog_type all\nlog_dest stderr\n")
    return broker


def of_mosquitto(broker: Mosquitto, password: str) -> mqtt.Sink:
    connection = mqtt.Connection(
        url=f"mqtt://127.0.0.1:{broker.port}",
        username="gateway",
        password=password,
    )
    return mqtt.Sink(connection=connection, topic="plant/press-1/telemetry")


@pytest.mark.broker
async def test_the_routes_of_compose_run_with_its_mosquitto_and_a_rabbitmq(
    tmp_path: Path, rabbitmq: RabbitMq, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, password in PASSWORDS.items():
        monkeypatch.setenv(name, password)
    rabbitmq.add_user("gateway", PASSWORDS["RABBITMQ_PASSWORD"])
    broker = put_mosquitto(tmp_path)
    await broker.start()
    place = Playground(tmp_path)
    text = ROUTES.read_text(encoding="utf-8")
    for outside, inside in {
        "mosquitto:1883": f"127.0.0.1:{broker.port}",
        "rabbitmq:5672": f"127.0.0.1:{rabbitmq.port}",
        "0.0.0.0:8081": f"127.0.0.1:{place.port(8081)}",
        "0.0.0.0:2575": f"127.0.0.1:{place.port(2575)}",
        "/var/lib/gateway": str(tmp_path / "var"),
    }.items():
        assert outside in text
        text = text.replace(outside, inside)
    (tmp_path / "routes.yaml").write_text(text)
    caplog.set_level("INFO", "gateway")
    host = FakeHost()
    try:
        async with running(load(tmp_path / "routes.yaml")):
            async with opened(of_mosquitto(broker, PASSWORDS["MQTT_PASSWORD"]), host) as send:
                await send(arriving(host, b'{"temperature": 71.5}'))
            await place.sh(
                "curl -H 'content-type: application/json' -d '{\"id\": \"A1\"}' http://127.0.0.1:8081/orders"
            )
            wanted = {"erp got a message of telemetry", "erp got a message of orders"}
            await until(lambda: wanted <= {vars(record).get("text") for record in caplog.records})
    finally:
        broker.kill()


@pytest.mark.broker
async def test_mosquitto_of_compose_lets_nobody_in_without_the_password(tmp_path: Path) -> None:
    broker = put_mosquitto(tmp_path)
    await broker.start()
    try:
        with pytest.raises(PeerError, match="not authori"):
            async with opened(of_mosquitto(broker, "guessed"), FakeHost()):
                pass
    finally:
        broker.kill()

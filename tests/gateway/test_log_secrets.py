"""What the log of a gateway never shows, however much it says: bodies, and secrets of its own or of its peers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import httpx2

from tests.playground import Playground
from tests.ports import free_port

ROUTES = """\
version: 1
gateway: {api: {listen: "127.0.0.1:8080"}}
connections:
  embedded: {mqtt_broker: {listen: "127.0.0.1:1883", auth: {users: {ann: "${env:RIGHT}"}}}}
  good: {mqtt: {url: "mqtt://127.0.0.1:1883", client_id: a, version: "3.1.1", username: ann, password: "${env:RIGHT}"}}
  bad: {mqtt: {url: "mqtt://127.0.0.1:1883", client_id: b, version: "3.1.1", username: ann, password: "${env:WRONG}"}}
routes:
  orders:
    from: {http: {listen: "127.0.0.1:8081", path: /orders}}
    accept: [{validate: {schema: schema.json}}]
    history: full
    steps:
      - map: {text: "{{ body.text }}", number: "{{ body.number | int }}"}
    to:
      - mqtt: {connection: good, topic: orders}
      - http: {url: "http://127.0.0.1:8081/target", username: gw, password: "${env:RIGHT}"}
        name: refusing
      - http: {url: "http://127.0.0.1:8081/target", token: "${env:WRONG}"}
        name: away
        retry: {attempts: 2, first_wait: 1ms}
      - mqtt: {connection: bad, topic: orders}
        name: unknown
        retry: {attempts: 2, first_wait: 1ms}
  echo:
    from: {mqtt_broker: {connection: embedded}}
    steps: [{filter: body.number > 1}]
    to: drop
  target:
    from: {http: {listen: "127.0.0.1:8081", path: /target}}
    ack: delivered
    accept: [{filter: headers.authorization is undefined}]
    to: drop
"""
SCHEMA = (
    '{"type": "object", "properties": {"text": {"maxLength": 40}, "number": {"not": {"const": "hidden-in-number"}}}}'
)
SECRETS = {"RIGHT": "hidden-right-password", "WRONG": "hidden-wrong-password"}
BODIES = [
    b'{"text": "hidden-in-text", "number": "7"}',
    b'{"text": "hidden-in-text", "number": "hidden-many"}',
    b'{"text": "hidden-in-text, too long to pass the schema", "number": "8"}',
    b'{"text": "hidden-in-text", "number": "hidden-in-number"}',
    b'{"text": "hidden-in-text", ',
    b"hidden-in-text",
]
HEADERS = {"Authorization": "Bearer hidden-bearer", "Cookie": "hidden-cookie", "X-Shop": "hidden-header"}


async def test_the_log_shows_no_body_and_no_secret(tmp_path: Path) -> None:
    place = Playground(tmp_path, {str(number): free_port() for number in (8080, 8081, 1883)})
    (tmp_path / "routes.yaml").write_text(place.mapped(ROUTES))
    (tmp_path / "schema.json").write_text(SCHEMA)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "run", "routes.yaml", "--log-level", "debug"),
        cwd=tmp_path,
        env={**os.environ, **SECRETS, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None
        said = b""
        async with asyncio.timeout(30):
            while b"is running" not in said:
                said += await process.stdout.readline()
        data, api = (f"http://127.0.0.1:{place.port(port)}" for port in (8081, 8080))
        async with httpx2.AsyncClient(timeout=20) as client:
            for body in BODIES:
                await client.post(f"{data}/orders", content=body, headers=HEADERS)
                await client.post(f"{api}/api/v1/routes/orders/messages", content=body, headers=HEADERS)
            token = (tmp_path / "var/admin.token").read_text().strip()
            client.headers["authorization"] = f"Bearer {token}"
            await client.post(f"{api}/api/v1/routes/orders/messages?wait=5s", content=BODIES[0])
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            said += await process.stdout.read()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    text = said.decode()
    assert '"event":"dead letter"' in text
    assert "check username: and password:" in text
    found = sorted(line for line in text.splitlines() if "hidden" in line or token in line or "Traceback" in line)
    assert found == []

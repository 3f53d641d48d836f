"""One scene: a gateway process with its routes, senders before it and targets behind it, and the ledger over all."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.ports import free_ports
from tests.reliability import books
from tests.reliability.brokers import TARGETS as BROKER_TARGETS
from tests.reliability.brokers import AmqpSender, Brokers, Lane, MqttSender
from tests.reliability.ledger import Ledger, Verdict
from tests.reliability.process import GATEWAY, Gateway
from tests.reliability.senders import HttpSender, Sender, TcpSender
from tests.reliability.targets import HttpTarget, Target, TcpTarget, always

DRAIN_S = 300.0
STUCK_S = 30.0
"""So long nothing came, and the gateway still has something: it is not waited for any longer."""
QUIET_S = 3.0
"""So long nothing came: then the gateway is asked whether it has anything left."""
AGAIN_WITHIN_S = 10.0
"""How soon after a fault of ours messages must be taken again (I7)."""
SEEN_WITHIN_S = 15.0
"""How soon a fault must show (I9)."""

ROUTES = """\
version: 1
gateway:
  data: ./var
  api: {{listen: "127.0.0.1:{api}"}}
  grace: 10s
  retention: {{reserve: {reserve}}}
{connections}routes:
  web:
    from: {{http: {{listen: "127.0.0.1:{http}", path: /web}}}}
    order_by: body.key
    steps: [{steps}{{set: {{subject: "{{{{ body.uid }}}}"}}}}]
    to:
      - {{http: {{url: "http://127.0.0.1:{a}/", timeout: 2s}}, name: a, retry: {retry}}}
      - {{tcp: {{connect: "127.0.0.1:{b}", reply: {{accepted: OK, refused: "NO", timeout: 2s}}, connections: 4}}, name: b, retry: {retry}}}
      - {{http: {{url: "http://127.0.0.1:{c}/", timeout: 2s}}, name: c, retry: {retry},
         circuit: {{failures: 3, reset_after: 300ms}}}}
  plain:
    from: {{http: {{listen: "127.0.0.1:{http}", path: /plain}}}}
    to: {{http: {{url: "http://127.0.0.1:{d}/", timeout: 2s}}, name: d, retry: {retry}}}
  lines:
    from: {{tcp: {{listen: "127.0.0.1:{tcp}", answer: {{}}}}}}
    order_by: body.key
    to: {{tcp: {{connect: "127.0.0.1:{e}", reply: {{accepted: OK, refused: "NO", timeout: 2s}}, connections: 4}}, name: e, retry: {retry}}}
{more}"""
RETRY = "{attempts: 1000, first_wait: 20ms, max_wait: 300ms}"
TARGETS = {"web": ("a", "b", "c"), "plain": ("d",), "lines": ("e",)}


class Scene:
    """Make one with `scene`."""

    def __init__(self, folder: Path, luck: random.Random, program: Sequence[str], lane: Lane | None) -> None:
        self.folder = folder
        self.luck = luck
        self.lane = lane
        """What the scene has at the brokers; None: it does without."""
        targets = {**TARGETS, **(BROKER_TARGETS if lane is not None else {})}
        self.ledger = Ledger(targets, through_brokers=BROKER_TARGETS)
        kinds: dict[str, type[Target]] = {"b": TcpTarget, "e": TcpTarget, "g": TcpTarget}
        names = [name for some in targets.values() for name in some]
        self.targets = {name: kinds.get(name, HttpTarget)(name, self.ledger) for name in names}
        self.http_port, self.tcp_port, api_port = free_ports(3)
        self.gateway = Gateway(folder, [self.http_port, self.tcp_port], api_port, program)
        self.senders: list[Sender] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.answers: list[str] = []
        """What senders were told that was not yes."""
        self.troubles: list[str] = []
        self.patience_s = DRAIN_S
        """The most that is waited for anything; less for a build that lies, which never does some of it."""
        self.dead: set[str] = set()
        """Those that the journal had as dead letters at the end."""
        self.doomed: set[str] = set()
        """Those that will never arrive, and must be dead letters."""

    def configure(self, *, retry: str = RETRY, steps: str = "", reserve: str = "1MiB") -> str:
        """Writes `routes.yaml`, and returns it."""
        lane, ports = self.lane, {name: target.port for name, target in self.targets.items()}
        text = ROUTES.format(
            api=self.gateway.api_port,
            http=self.http_port,
            tcp=self.tcp_port,
            retry=retry,
            steps=steps,
            reserve=reserve,
            connections=lane.connections if lane is not None else "",
            more=lane.routes(ports["f"], ports["g"], retry) if lane is not None else "",
            **ports,
        )
        self.gateway.config.write_text(text)
        return text

    # -- load --------------------------------------------------------------------------------------------------------

    def add_senders(self, *, web: int = 4, plain: int = 2, lines: int = 2) -> None:
        """Gets senders ready, with a name each that no other had."""
        for route, count, port, kind in (
            ("web", web, self.http_port, HttpSender),
            ("plain", plain, self.http_port, HttpSender),
            ("lines", lines, self.tcp_port, TcpSender),
        ):
            for index in range(count):
                name = f"{route}{len(self.senders)}"
                sender = kind(name, route, port, self.ledger, self.luck, keyed=route != "plain")
                sender.told = self.answers.append
                if isinstance(sender, HttpSender):
                    sender.in_halves = index == 0
                self.senders.append(sender)
        if self.lane is not None:
            self._add_broker_senders(self.lane)

    def _add_broker_senders(self, lane: Lane) -> None:
        """Two senders more through each broker."""
        for number in range(2):
            mqtt = MqttSender(
                f"readings{number}", "readings", lane.brokers.mqtt_port, self.ledger, self.luck, keyed=True
            )
            mqtt.topic = f"{lane.name}/{number}"
            amqp = AmqpSender(f"orders{number}", "orders", lane.brokers.amqp_port, self.ledger, self.luck, keyed=True)
            amqp.queue = lane.name
            for sender in (mqtt, amqp):
                sender.pause_s = 0.02  # what brokers have confirmed piles up there while the gateway is away
                self.senders.append(sender)

    async def begin(self) -> None:
        """Starts the gateway, and lets all senders send once it is ready: its sessions at the brokers are made then."""
        await self.gateway.start()
        deadline = time.monotonic() + AGAIN_WITHIN_S
        while (await self.gateway.ask("GET", "/health/ready"))[0] != 200:
            if time.monotonic() > deadline:
                self.troubles.append(f"the gateway is not ready after {AGAIN_WITHIN_S:g} s")
                break
            await asyncio.sleep(0.02)
        self._tasks = [asyncio.create_task(sender.run(), name=sender.name) for sender in self.senders]

    async def end(self) -> None:
        """Stops all senders; what they did not hear of stays unknown to them."""
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def acknowledged(self, count: int, timeout_s: float = 30.0) -> None:
        """Returns once so many more messages were acknowledged, or the gateway has ended, or the time is over."""
        wanted = self.ledger.acknowledged + count
        deadline = time.monotonic() + timeout_s
        while self.ledger.acknowledged < wanted and time.monotonic() < deadline and self.gateway.running:
            await asyncio.sleep(0.005)

    async def send_deadly(self, word: str) -> str:
        """One message more, with this text in it. Returns its id once it was acknowledged."""
        sender = HttpSender("deadly", "web", self.http_port, self.ledger, self.luck, keyed=True)
        sender.text = word
        reader, writer = await asyncio.open_connection("127.0.0.1", self.http_port)
        try:
            await sender.send_one(reader, writer)
        except (OSError, EOFError):
            self.troubles.append("the deadly message was not acknowledged before it killed")
        finally:
            writer.transport.abort()
        self.doomed.add("deadly-1")
        return "deadly-1"

    # -- faults ------------------------------------------------------------------------------------------------------

    async def kill(self, what: str = "kill -9") -> None:
        """kill -9, under the load that goes on."""
        self.ledger.fault(what)
        await self.gateway.kill()

    async def restart(self, environment: Mapping[str, str] | None = None) -> None:
        """Starts the gateway after a fault of its own, under the load that goes on, and times its coming back (I7)."""
        fault = self.ledger.faults[-1]
        began = fault.ended_s = time.monotonic()
        before = self.ledger.acknowledged
        await self.gateway.start(environment)
        while self._tasks and self.ledger.acknowledged == before:
            if time.monotonic() - began > AGAIN_WITHIN_S:
                self.troubles.append(f"nothing was taken {AGAIN_WITHIN_S:g} s after {fault.what}")
                break
            if not self.gateway.running:
                break
            await asyncio.sleep(0.005)

    async def start_again(self) -> None:
        """Starts the gateway after an orderly stop: no fault, but messages must be taken again in time."""
        before, began = self.ledger.acknowledged, time.monotonic()
        await self.gateway.start()
        await self.acknowledged(1, AGAIN_WITHIN_S)
        if self.ledger.acknowledged == before:
            self.troubles.append(f"nothing was taken {time.monotonic() - began:.1f} s after a stop and a start")

    async def reloaded(self, *, broken: bool) -> bool:
        """SIGHUP. Whether the reload is over within 10 s, as its metric says."""
        name = f'gateway_reloads_total{{result="{"failed" if broken else "good"}"}}'
        before = (await self.gateway.metrics()).get(name, 0)
        self.gateway.send(signal.SIGHUP)
        deadline = time.monotonic() + AGAIN_WITHIN_S
        while time.monotonic() < deadline:
            if (await self.gateway.metrics()).get(name, 0) > before:
                return True
            await asyncio.sleep(0.02)
        return False

    async def replay_all(self, rate: str) -> None:
        """Sends all dead letters again, as an operator does; a process that dies meanwhile gives no answer."""
        try:
            status, said = await self.gateway.ask("POST", "/api/v1/dead-letters/replay", {"all": True, "rate": rate})
        except (OSError, EOFError):
            return
        if status != 200:
            self.troubles.append(f"replay of all dead letters: {status} {said}")

    # -- the end -----------------------------------------------------------------------------------------------------

    def patience(self, seconds: float) -> float:
        """How long to wait for what an honest build does within so many seconds."""
        return min(seconds, self.patience_s)

    async def drained(self) -> None:
        """Returns once everything acknowledged has reached its targets, or the gateway says that it has nothing left."""
        began = time.monotonic()
        while time.monotonic() < began + self.patience(DRAIN_S):
            quiet_s = time.monotonic() - max(began, self.ledger.last_receipt_s)
            if quiet_s > STUCK_S:
                return
            if quiet_s > 0.3 and not self.ledger.waiting(self.doomed):
                return
            if quiet_s > QUIET_S and await self._is_empty():
                return
            await asyncio.sleep(0.05)

    async def _is_empty(self) -> bool:
        try:
            found = await self.gateway.metrics()
        except (OSError, EOFError):
            return False
        return not _open(found)

    async def judged(self) -> Verdict:
        """One more kill -9 under load, then: drains, stops the gateway in good order, reads its books, and judges.

        The kill is there so that no suite passes with a gateway that acknowledges before it commits.
        """
        if self._tasks and self.gateway.running:
            await self.acknowledged(50)
            await self.kill("the last kill -9")
            await self.restart()
            await self.acknowledged(20)
        await self.end()
        for target in self.targets.values():
            target.act = always
        if not self.gateway.running:
            await self.gateway.start()
        await self.drained()
        metrics = await self._last_metrics()
        code = await self.gateway.stop()
        if code != 0:
            self.troubles.append(f"the gateway ended a stop with {code}: {self.gateway.tail(600)}")
        found = books.read(self.folder / "var" / "gateway.db")
        self.troubles += books.wrong_in(found, self.ledger)
        self.troubles += books.unbalanced(metrics, found, self.ledger, self.gateway.started_s)
        self.dead = found.uids("dead")
        verdict = self.ledger.judge(self.dead, found.uids("stored", "pending"))
        verdict.troubles += self.troubles
        verdict.troubles += [f"a sender was told of the inside: {text}" for text in self.answers if _inside(text)]
        return verdict

    async def _last_metrics(self) -> books.Metrics:
        """/metrics at the end, once what the targets have answered is noted too."""
        deadline = time.monotonic() + self.patience(QUIET_S)
        while True:
            try:
                found = await self.gateway.metrics()
            except (OSError, EOFError, TimeoutError) as error:
                self.troubles.append(f"/metrics does not answer: {error!r}")
                return {}
            if not _open(found) or time.monotonic() > deadline:
                return found
            await asyncio.sleep(0.05)


def _open(metrics: books.Metrics) -> float:
    """How many messages are not answered or not done."""
    return sum(
        value
        for name, value in metrics.items()
        if name.startswith(("gateway_messages_pending{", "gateway_messages_in_flight{"))
    )


def _inside(text: str) -> bool:
    """Whether an answer shows a stack trace or a path of ours (I12)."""
    return any(word in text for word in ("Traceback", ".py", "/var/", "gateway.db"))


@asynccontextmanager
async def scene(
    folder: Path,
    luck: random.Random,
    *,
    program: Sequence[str] = GATEWAY,
    brokers: Brokers | None = None,
) -> AsyncIterator[Scene]:
    """A scene in this folder: its targets listen, its configuration is written, its gateway does not run yet."""
    folder.mkdir(parents=True, exist_ok=True)
    lane = brokers.lane() if brokers is not None else None
    if lane is not None:
        await lane.declare()
    made = Scene(folder, luck, program, lane)
    for target in made.targets.values():
        await target.up()
    made.configure()
    try:
        async with made.gateway:
            yield made
    finally:
        with contextlib.suppress(Exception):
            await made.end()
        for target in made.targets.values():
            await target.down()

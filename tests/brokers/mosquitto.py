"""A real Mosquitto of the test's own: Debian's `mosquitto`, on a free port of 127.0.0.1, with its own folder."""

from __future__ import annotations

import asyncio
import getpass
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.certificates import Pair
from tests.ports import free_port


def _installed(program: str, package: str) -> str:
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise RuntimeError(f"these tests need the program {program}; install it with: apt-get install {package}")
    return found


class Mosquitto:
    """A broker that can be killed and started again on the same port.

    users: names and passwords; without any, everybody may come in.
    settings: more lines of `mosquitto.conf`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        users: Mapping[str, str] | None = None,
        tls: Pair | None = None,
        client_ca: Path | None = None,
        settings: Sequence[str] = (),
    ) -> None:
        self._program = _installed("mosquitto", "mosquitto")
        self._folder = folder / "mosquitto"
        self._folder.mkdir(mode=0o755)
        self.port = free_port()
        self.tls = tls is not None
        self._process: subprocess.Popen[bytes] | None = None
        lines = [
            f"listener {self.port} 127.0.0.1",
            f"user {getpass.getuser()}",
            "persistence true",
            f"persistence_location {self._folder}/",
            f"allow_anonymous {'false' if users else 'true'}",
            "max_queued_messages 0",
            "log_dest stderr",
            "log_type all",
            *settings,
        ]
        if users:
            passwords = self._folder / "passwords"
            passwords.write_text("".join(f"{name}:{password}\n" for name, password in users.items()))
            subprocess.run([_installed("mosquitto_passwd", "mosquitto"), "-U", passwords], check=True)
            lines.append(f"password_file {passwords}")
        if tls is not None:
            lines += [f"certfile {tls.certificate}", f"keyfile {tls.private_key}"]
        if client_ca is not None:
            lines += [f"cafile {client_ca}", "require_certificate true"]
        self._config = self._folder / "mosquitto.conf"
        self._config.write_text("\n".join(lines) + "\n")
        self._log = self._folder / "mosquitto.log"

    @property
    def url(self) -> str:
        """What a client connects to."""
        return f"{'mqtts' if self.tls else 'mqtt'}://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What it wrote so far."""
        return self._log.read_text(errors="replace")

    async def start(self) -> None:
        """Starts it, and returns once it listens."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([self._program, "-c", str(self._config)], stdout=log, stderr=log)
        async with asyncio.timeout(10):
            while True:
                if self._process.poll() is not None:
                    raise RuntimeError(f"mosquitto did not start:\n{self.log}")
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.01)
                else:
                    writer.close()
                    await writer.wait_closed()
                    return

    def kill(self) -> None:
        """kill -9: what it only had in memory is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stops it in good order: it writes what it holds to its folder."""
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """It is there and does nothing, until `thaw`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """The opposite of `freeze`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(how)
            process.wait(10)


@asynccontextmanager
async def mosquitto(
    folder: Path,
    *,
    users: Mapping[str, str] | None = None,
    tls: Pair | None = None,
    client_ca: Path | None = None,
    settings: Sequence[str] = (),
) -> AsyncIterator[Mosquitto]:
    """A running Mosquitto, stopped when the context ends."""
    broker = Mosquitto(folder, users=users, tls=tls, client_ca=client_ca, settings=settings)
    await broker.start()
    try:
        yield broker
    finally:
        broker.kill()

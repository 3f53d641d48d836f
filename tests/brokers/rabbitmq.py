"""RabbitMQ for tests: Debian's server as a process of the test session, on free ports, with folders of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.ports import free_ports

_SCRIPTS = Path("/usr/lib/rabbitmq/bin")
"""Debian's wrappers in /usr/sbin insist on its own user; these scripts, which they call, run as whoever calls them."""
_START_S = 60.0


class RabbitMq:
    """A broker that can be killed, restarted and starved. `port` and `tls_port` stay the same for all its lives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.tls_port, self._dist_port, self._epmd_port = free_ports(4)
        self.authority = Authority(folder)
        self._server: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        pair = self.authority.issue("broker")
        (folder / "rabbitmq.conf").write_text(
            f"""
            listeners.tcp.default = 127.0.0.1:{self.port}
            listeners.ssl.default = 127.0.0.1:{self.tls_port}
            ssl_options.cacertfile = {self.authority.ca}
            ssl_options.certfile = {pair.certificate}
            ssl_options.keyfile = {pair.private_key}
            ssl_options.verify = verify_peer
            ssl_options.fail_if_no_peer_cert = false
            ssl_options.versions.1 = tlsv1.3
            ssl_options.versions.2 = tlsv1.2
            vm_memory_high_watermark.absolute = 2GiB
            disk_free_limit.absolute = 1MB
            log.console = true
            log.console.level = warning
            log.file = false
            """.replace("            ", "")
        )
        (folder / "plugins").write_text("[].")
        for name in ("home", "mnesia", "log"):
            (folder / name).mkdir(exist_ok=True)

    @property
    def url(self) -> str:
        """The default vhost, user guest with password guest."""
        return f"amqp://127.0.0.1:{self.port}"

    @property
    def tls_url(self) -> str:
        """The same over TLS, with a certificate for 127.0.0.1 that `authority` signed."""
        return f"amqps://127.0.0.1:{self.tls_port}"

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._server is not None and self._server.poll() is None

    def start(self) -> None:
        """Starts it, and returns once it accepts connections.

        Raises:
            FileNotFoundError: it is not installed.
            AssertionError: it did not start.
        """
        if not (_SCRIPTS / "rabbitmq-server").exists() or shutil.which("epmd") is None:
            raise FileNotFoundError("these tests need RabbitMQ: apt-get install rabbitmq-server (it need not run)")
        if self._epmd is None:
            # One of our own, as a child: the server would start one that outlives it.
            self._epmd = self._spawn(["epmd", "-address", "127.0.0.1", "-port", str(self._epmd_port)])
            _until_open(self._epmd_port, self._epmd)
        self._server = self._spawn([str(_SCRIPTS / "rabbitmq-server")])
        _until_open(self.tls_port, self._server)
        self.ctl("await_startup")

    def kill(self) -> None:
        """kill -9."""
        if self._server is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()

    def close(self) -> None:
        """Ends all that was started."""
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()

    def restart(self) -> None:
        """An orderly stop, and a start."""
        self.ctl("stop")
        assert self._server is not None
        self._server.wait(_START_S)
        self.start()

    def ctl(self, *arguments: str) -> str:
        """What `rabbitmqctl` with these arguments prints. Takes about a second.

        Raises:
            AssertionError: it failed.
        """
        done = subprocess.run(
            [str(_SCRIPTS / "rabbitmqctl"), "-q", *arguments],
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=_START_S,
            check=False,
        )
        assert done.returncode == 0, f"rabbitmqctl {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def keep(self) -> None:
        """What was declared survives a kill -9 from now on: RabbitMQ says that a queue is there before it is on disk."""
        self.ctl("eval", "mnesia:sync_log().")

    def stop_app(self) -> None:
        """Closes all connections and listeners; the process stays."""
        self.ctl("stop_app")

    def start_app(self) -> None:
        """Opens them again."""
        self.ctl("start_app")

    def set_memory_watermark(self, absolute: str) -> None:
        """`1kB` blocks publishers, `2GiB` lets them go on."""
        self.ctl("set_vm_memory_high_watermark", "absolute", absolute)

    def add_vhost(self, name: str) -> None:
        """A vhost that guest may use."""
        self.ctl("add_vhost", name)
        self.ctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")

    def add_user(
        self, name: str, password: str, *, configure: str = ".*", write: str = ".*", read: str = ".*", vhost: str = "/"
    ) -> None:
        """A user with these permissions (regular expressions over names)."""
        self.ctl("add_user", name, password)
        self.ctl("set_permissions", "-p", vhost, name, configure, write, read)

    def _environment(self) -> dict[str, str]:
        folder = self.folder
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(folder / "home"),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_NODENAME": f"gateway{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
            "detached": "1",  # the script becomes the server instead of watching over it, so that kill -9 hits the server
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / "output").open("ab") as output:
            return subprocess.Popen(
                command,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                start_new_session=True,
            )


def _until_open(port: int, process: subprocess.Popen[bytes]) -> None:
    until_s = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
            assert time.monotonic() < until_s, f"{process.args!r} did not listen within {_START_S:g} s"
            time.sleep(0.05)
        else:
            return


@pytest.fixture(scope="session")
def rabbitmq_process() -> Iterator[RabbitMq]:
    """One broker for the whole session: it takes seconds to start."""
    folder = Path(tempfile.mkdtemp(prefix="rabbitmq-"))
    broker = RabbitMq(folder)
    try:
        broker.start()
        yield broker
    finally:
        broker.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def rabbitmq(rabbitmq_process: RabbitMq) -> RabbitMq:
    """The broker, running, whatever the test before did to it."""
    if not rabbitmq_process.running:
        rabbitmq_process.start()
    return rabbitmq_process

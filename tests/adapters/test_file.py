"""Files: never half a one read, moved only after the outcome; written whole, synced, never overwritten unasked."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from adapters import file
from adapters._folders import Stamp, move_into, stamp_of
from gateway import Accepted, Deferred, Limits, Message, MessageError, Outcome, PeerError, Refused
from gateway.testing import FakeHost, Inbox, ManualClock, arriving, running, settle, until


def source(folder: Path, **settings: Any) -> file.Source:
    return file.Source.model_validate({"folder": folder, "every": "1s", "settle": "2s", **settings})


async def tick(host: FakeHost, times: int = 1) -> None:
    clock = host.clock
    assert isinstance(clock, ManualClock)
    for _ in range(times):
        await until(lambda: clock.sleeping)
        await clock.advance(1)
    await settle()


async def test_a_file_is_read_once_it_is_settled_and_moved_to_done(tmp_path: Path) -> None:
    host = FakeHost(clock=ManualClock())
    inbox = Inbox(host)
    (tmp_path / "a.json").write_bytes(b'{"n": 1}')
    async with running(source(tmp_path), inbox, host):
        await tick(host)
        assert inbox.messages == []
        await tick(host, 2)
        await until(lambda: (tmp_path / "done" / "a.json").exists())
    assert [(m.subject, m.content_type, m.body) for m in inbox.messages] == [
        ("a.json", "application/json", b'{"n": 1}')
    ]
    assert not (tmp_path / "a.json").exists()


async def test_a_file_that_can_not_be_read_is_named_and_does_not_stand_in_the_way(tmp_path: Path) -> None:
    host = FakeHost(clock=ManualClock())
    inbox = Inbox(host)
    (tmp_path / "a.txt").symlink_to("/proc/self/mem")  # a file that nobody may read the beginning of
    (tmp_path / "b.txt").write_bytes(b"good")
    async with running(source(tmp_path, settle="0s", follow_links=True), inbox, host) as task:
        with pytest.raises(PeerError, match=r"^file a\.txt: Input/output error; may this process read"):
            await task
    assert [message.body for message in inbox.messages] == [b"good"]
    assert (tmp_path / "a.txt").is_symlink()


async def test_a_symbolic_link_is_not_followed_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host = FakeHost(clock=ManualClock())
    inbox = Inbox(host)
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret.txt").write_bytes(b"secret")
    (folder / "a.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "b.txt").write_bytes(b"good")
    async with running(source(folder, settle="0s"), inbox, host):
        await tick(host, 3)
        await inbox.wait(1)
    assert [message.body for message in inbox.messages] == [b"good"]
    assert (folder / "a.txt").is_symlink()
    assert [record.__dict__["file"] for record in caplog.records if record.message == "symbolic link left alone"] == [
        "a.txt"
    ]


async def test_a_file_that_becomes_a_link_while_it_is_read_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_bytes(b"secret")
    (tmp_path / "a.txt").symlink_to(tmp_path / "secret.txt")
    stamp = stamp_of(tmp_path / "a.txt")
    assert stamp is not None
    assert source(tmp_path)._read(tmp_path / "a.txt", stamp, 100) is None
    assert source(tmp_path, follow_links=True)._read(tmp_path / "a.txt", stamp, 100) == b"secret"


async def test_a_file_that_still_grows_is_left_alone(tmp_path: Path) -> None:
    host = FakeHost(clock=ManualClock())
    inbox = Inbox(host)
    growing = tmp_path / "a.txt"
    growing.write_bytes(b"one")
    (tmp_path / ".hidden").write_bytes(b"x")
    (tmp_path / "b.part").write_bytes(b"x")
    async with running(source(tmp_path), inbox, host):
        for round_ in range(4):
            await tick(host)
            with growing.open("ab") as more:
                more.write(b"%d" % round_)
        assert inbox.messages == []
        await tick(host, 4)
        await inbox.wait(1)
    assert inbox.messages[0].body == b"one0123"


async def test_a_file_that_is_written_again_while_others_are_delivered_is_left_alone(tmp_path: Path) -> None:
    host = FakeHost(clock=ManualClock())

    def outcome(message: Message) -> Outcome:
        if message.subject == "a.txt":
            with (tmp_path / "b.txt").open("ab") as more:
                more.write(b" whole")
        return Accepted(message.id)

    inbox = Inbox(host, outcome)
    (tmp_path / "a.txt").write_bytes(b"first")
    (tmp_path / "b.txt").write_bytes(b"half")
    (tmp_path / "c.txt").write_bytes(b"gone")
    async with running(source(tmp_path), inbox, host):
        await tick(host, 2)
        await tick(host)
        await inbox.wait(1)
        await until(lambda: (tmp_path / "done" / "c.txt").exists())
        assert [message.body for message in inbox.messages] == [b"first", b"gone"]
        await tick(host, 4)
        await inbox.wait(3)
    assert inbox.messages[2].body == b"half whole"


async def test_what_was_written_over_a_file_that_is_under_way_is_a_message_of_its_own(tmp_path: Path) -> None:
    host = FakeHost(clock=ManualClock())
    latest = tmp_path / "latest.txt"

    def outcome(message: Message) -> Outcome:
        if message.body == b"1":
            (tmp_path / "next.tmp").write_bytes(b"2")
            (tmp_path / "next.tmp").rename(latest)
        return Accepted(message.id)

    inbox = Inbox(host, outcome)
    latest.write_bytes(b"1")
    async with running(source(tmp_path), inbox, host):
        await tick(host, 3)
        await inbox.wait(1)
        assert latest.read_bytes() == b"2"
        await tick(host, 4)
        await inbox.wait(2)
        await until(lambda: not latest.exists())
    assert [message.body for message in inbox.messages] == [b"1", b"2"]


async def test_a_file_that_is_taken_away_before_it_is_read_is_nobodys_fault(tmp_path: Path) -> None:
    host = FakeHost(clock=ManualClock())

    def outcome(message: Message) -> Outcome:
        (tmp_path / "b.txt").unlink(missing_ok=True)
        return Accepted(message.id)

    inbox = Inbox(host, outcome)
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_bytes(name.encode())
    async with running(source(tmp_path), inbox, host):
        await tick(host, 3)
        await inbox.wait(2)
    assert [message.subject for message in inbox.messages] == ["a.txt", "c.txt"]


@pytest.mark.parametrize(("size", "folder"), [(1000, "done"), (1001, "failed")], ids=["at the limit", "over it"])
async def test_a_file_has_the_limit_of_messages(tmp_path: Path, size: int, folder: str) -> None:
    host = FakeHost(clock=ManualClock(), limits=Limits.model_validate({"message": "1000B"}))
    inbox = Inbox(host, lambda m: Refused(m.id, "too large", "too_large") if len(m.body) > 1000 else Accepted(m.id))
    (tmp_path / "a.txt").write_bytes(b"x" * size)
    async with running(source(tmp_path), inbox, host):
        await tick(host, 3)
        await until(lambda: (tmp_path / folder / "a.txt").exists())
    assert (tmp_path / folder / "a.txt").stat().st_size == size
    assert len(inbox.messages[0].body) == size


async def test_a_refused_file_moves_to_failed_and_a_deferred_one_is_handed_over_again(tmp_path: Path) -> None:
    host = FakeHost(clock=ManualClock())
    outcomes: list[Outcome] = [Deferred("", "why"), Refused("", "why"), Accepted("")]

    def outcome(message: Message) -> Outcome:
        return outcomes.pop(0)

    inbox = Inbox(host, outcome)
    (tmp_path / "a").write_bytes(b"{}")
    (tmp_path / "b").write_bytes(b"{}")
    async with running(source(tmp_path), inbox, host):
        await tick(host, 3)
        await until(lambda: len(inbox.messages) >= 1)
        await tick(host)
        await until(lambda: (tmp_path / "done" / "b").exists())
    assert (tmp_path / "failed" / "a").exists()
    assert [message.subject for message in inbox.messages] == ["a", "a", "b"]


async def test_a_name_that_is_taken_in_done_gets_a_number(tmp_path: Path) -> None:
    host = FakeHost(clock=ManualClock())
    inbox = Inbox(host)
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "a.json").write_bytes(b"earlier")
    (tmp_path / "a.json").write_bytes(b"{}")
    async with running(source(tmp_path), inbox, host):
        await tick(host, 3)
        await until(lambda: (tmp_path / "done" / "a.1.json").exists())
    assert (tmp_path / "done" / "a.json").read_bytes() == b"earlier"


async def test_half_a_line_that_is_there_does_not_spoil_the_next(tmp_path: Path) -> None:
    host = FakeHost()
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": ')  # as a power cut may leave it
    sink = file.Sink.model_validate({"path": str(path)})
    async with sink.open(host) as send:
        await send(arriving(host, b'{"n": 2}'))
        await send(arriving(host, b'{"n": 3}'))
    assert path.read_bytes() == b'{"n": 1}\n{"n": \n{"n": 2}\n{"n": 3}\n'


OTHER_DISK = Path("/dev/shm")


@pytest.mark.skipif(not OTHER_DISK.is_dir(), reason="there is no second file system here")
async def test_a_file_moves_to_a_folder_on_another_file_system(tmp_path: Path) -> None:
    host = FakeHost(clock=ManualClock())
    inbox = Inbox(host)
    (tmp_path / "a.json").write_bytes(b"{}")
    with tempfile.TemporaryDirectory(dir=OTHER_DISK) as done:
        async with running(source(tmp_path, done=done, settle="0s"), inbox, host):
            await until(lambda: (Path(done) / "a.json").exists())
            await until(lambda: not (tmp_path / "a.json").exists())
        assert [path.name for path in Path(done).iterdir()] == ["a.json"]
        assert (Path(done) / "a.json").read_bytes() == b"{}"
    assert len(inbox.messages) == 1


async def test_append_writes_one_line_a_message(tmp_path: Path) -> None:
    host = FakeHost()
    sink = file.Sink.model_validate({"path": str(tmp_path / "deep" / "out.jsonl")})
    async with sink.open(host) as send:
        await send(arriving(host, b'{"n":1}'))
        await send(arriving(host, b'{"n":2}\n'))
        with pytest.raises(MessageError, match=r"append writes one line a message"):
            await send(arriving(host, b"two\nlines"))
    assert (tmp_path / "deep" / "out.jsonl").read_bytes() == b'{"n":1}\n{"n":2}\n'


async def test_create_makes_a_file_for_each_and_refuses_a_name_that_is_there(tmp_path: Path) -> None:
    host = FakeHost()
    sink = file.Sink.model_validate({"path": f"{tmp_path}/{{{{ body.id }}}}.json", "mode": "create"})
    async with sink.open(host) as send:
        await send(arriving(host, b'{"id":"A1"}'))
        with pytest.raises(MessageError, match=r"^file A1\.json: it is there already"):
            await send(arriving(host, b'{"id":"A1","again":true}'))
        with pytest.raises(MessageError):
            await send(arriving(host, b'{"id":"../../etc/x"}'))
    assert [path.name for path in tmp_path.iterdir()] == ["A1.json"]
    assert (tmp_path / "A1.json").read_bytes() == b'{"id":"A1"}'


@pytest.mark.parametrize("mode", ["create", "replace"])
@pytest.mark.parametrize("name", ["n" * 251, "\u20ac" * 83])
async def test_a_name_may_be_as_long_as_a_file_name_can_be(tmp_path: Path, mode: str, name: str) -> None:
    host = FakeHost()
    sink = file.Sink.model_validate({"path": f"{tmp_path}/{{{{ body }}}}.txt", "mode": mode})
    async with sink.open(host) as send:
        await send(arriving(host, f'"{name}"'.encode()))
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.txt"]


def created(folder: Path) -> file.Sink:
    return file.Sink.model_validate({"path": f"{folder}/{{{{ body.id }}}}.json", "mode": "create"})


async def test_a_message_whose_file_was_written_already_is_delivered_the_second_time(tmp_path: Path) -> None:
    host = FakeHost()
    message = arriving(host, b'{"id":"A1"}')
    async with created(tmp_path).open(host) as send:
        await send(message)
        before = (tmp_path / "A1.json").stat()
        await send(message.replace())
    assert [path.name for path in tmp_path.iterdir()] == ["A1.json"]
    assert (tmp_path / "A1.json").stat().st_ino == before.st_ino


async def test_another_message_another_target_and_other_bytes_are_not_taken_for_what_is_there(tmp_path: Path) -> None:
    host, other = FakeHost(), FakeHost(target="other")
    message = arriving(host, b'{"id":"A1"}')
    async with created(tmp_path).open(host) as send, created(tmp_path).open(other) as send_other:
        await send(message)
        for one in (arriving(host, b'{"id":"A1"}'), message.with_body(b'{"id":"A1", "changed": 1}')):
            with pytest.raises(MessageError, match=r"^file A1\.json: it is there already"):
                await send(one)
        with pytest.raises(MessageError, match=r"^file A1\.json: it is there already"):
            await send_other(message)


async def test_a_file_or_folder_that_somebody_else_put_there_is_not_taken_for_ours(tmp_path: Path) -> None:
    host = FakeHost()
    message = arriving(host, b'{"id":"A1"}')
    (tmp_path / "A1.json").write_bytes(message.body)
    (tmp_path / "A2.json").mkdir()
    async with created(tmp_path).open(host) as send:
        for one in (message, arriving(host, b'{"id":"A2"}')):
            with pytest.raises(MessageError, match="it is there already"):
                await send(one)


async def test_where_files_have_no_attributes_bytes_and_time_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> bytes:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", unsupported)
    monkeypatch.setattr(os, "getxattr", unsupported)
    host = FakeHost()
    message = arriving(host, b'{"id":"A1"}')
    async with created(tmp_path).open(host) as send:
        await send(message)
        await send(message.replace())
        with pytest.raises(MessageError, match="it is there already"):
            await send(arriving(host, b'{"id":"A1"}', time_s=message.time_s + 60))
        with pytest.raises(MessageError, match="it is there already"):
            await send(message.with_body(b'{"id":"A1", "changed": 1}'))


async def test_of_two_messages_that_come_at_once_one_has_the_name(tmp_path: Path) -> None:
    host = FakeHost()
    async with created(tmp_path).open(host) as send:
        messages = [arriving(host, b'{"id":"A1"}') for _ in range(8)]
        outcomes = await asyncio.gather(*(send(one) for one in messages), return_exceptions=True)
    assert sorted(type(one) is MessageError for one in outcomes) == [False] + [True] * 7
    assert [path.name for path in tmp_path.iterdir()] == ["A1.json"]


async def test_a_file_that_is_taken_away_as_soon_as_it_is_there_is_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Path.hardlink_to

    def taken_away(path: Path, part: Path) -> None:
        link(path, part)
        path.unlink()

    monkeypatch.setattr(Path, "hardlink_to", taken_away)
    host = FakeHost()
    async with created(tmp_path).open(host) as send:
        await send(arriving(host, b'{"id":"A1"}'))
    assert list(tmp_path.iterdir()) == []


async def test_replace_writes_the_file_anew(tmp_path: Path) -> None:
    host = FakeHost()
    sink = file.Sink.model_validate({"path": str(tmp_path / "last.json"), "mode": "replace"})
    async with sink.open(host) as send:
        await send(arriving(host, b"1"))
        await send(arriving(host, b"22"))
    assert (tmp_path / "last.json").read_bytes() == b"22"


async def test_a_folder_that_is_a_file_is_the_peers_fault(tmp_path: Path) -> None:
    host = FakeHost()
    (tmp_path / "x").write_bytes(b"")
    sink = file.Sink.model_validate({"path": str(tmp_path / "x" / "out")})
    async with sink.open(host) as send:
        with pytest.raises(PeerError, match=r"^file out: "):
            await send(arriving(host, b"1"))
    await settle()


async def test_a_stop_waits_for_a_move_that_has_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moving, go_on = threading.Event(), threading.Event()

    def slow(path: Path, folder: Path, stamp: Stamp) -> Path | None:
        moving.set()
        go_on.wait(5)
        return move_into(path, folder, stamp)

    monkeypatch.setattr(file, "move_into", slow)
    host = FakeHost(clock=ManualClock())
    inbox = Inbox(host)
    (tmp_path / "a.json").write_bytes(b"1")
    async with running(source(tmp_path, settle="0s"), inbox, host) as task:
        await until(moving.is_set)
        task.cancel()
        await settle()
        assert not task.done()
        go_on.set()
        await asyncio.wait({task})
    assert (tmp_path / "done" / "a.json").exists()


async def test_a_stop_waits_for_the_folders_that_are_being_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    making, go_on = threading.Event(), threading.Event()
    mkdir = Path.mkdir

    def slow(path: Path, *args: Any, **more: Any) -> None:
        making.set()
        go_on.wait(5)
        mkdir(path, *args, **more)

    monkeypatch.setattr(Path, "mkdir", slow)
    host = FakeHost()
    task = asyncio.create_task(source(tmp_path / "in").run(host, Inbox(host), lambda: None))
    await until(making.is_set)
    task.cancel()
    await settle()
    assert not task.done(), "who takes the folder away now finds it made again"
    go_on.set()
    await asyncio.wait({task})
    assert task.cancelled()
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["done", "failed"]

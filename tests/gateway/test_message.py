"""The envelope: its two forms, its ids, its copies."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import JSON, Limits, Message, MessageError, Tree, derived_id, new_id, rfc3339
from gateway.message import Accepted, Deferred, Refused
from gateway.testing import until

UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


class Counting:
    """Formats that count."""

    limits = Limits()

    def __init__(self) -> None:
        self.parsed = 0
        self.written = 0

    def parse(self, body: bytes, content_type: str) -> Tree:
        self.parsed += 1
        return body.decode()

    def format(self, tree: Tree, content_type: str) -> bytes:
        self.written += 1
        return str(tree).encode()


# --- ids


def test_ids_are_uuids_of_version_7_that_tell_their_time() -> None:
    before_ms = time.time_ns() // 1_000_000
    ids = [new_id() for _ in range(10_000)]
    after_ms = time.time_ns() // 1_000_000
    assert len(set(ids)) == len(ids)
    for each in ids:
        assert UUID7.fullmatch(each)
        assert before_ms <= int(each[:8] + each[9:13], 16) <= after_ms


async def test_ids_of_later_milliseconds_sort_later() -> None:
    first, at_ms = new_id(), time.time_ns() // 1_000_000
    await until(lambda: time.time_ns() // 1_000_000 > at_ms)
    assert first < new_id()


def test_derived_ids_are_the_same_for_the_same_and_different_for_others() -> None:
    parent, other = new_id(), new_id()
    assert derived_id(parent, "steps.0.split", 1) == derived_id(parent, "steps.0.split", 1)
    found = {
        derived_id(*given)
        for given in [(parent, "a", 0), (parent, "a", 1), (parent, "b", 0), (other, "a", 0), (parent, "a\x000", 0)]
    }
    assert len(found) == 5


def test_a_derived_id_never_changes() -> None:
    parent = "01890a5d-ac96-774b-bcce-b302099a8057"
    assert derived_id(parent, "steps.0.split", 3) == derived_id(parent, "steps.0.split", 3)
    assert derived_id(parent, "steps.0.split", 3).startswith("01890a5d-ac96-7")


@given(st.text(), st.integers(0, 2**31))
def test_derived_ids_are_uuids_beside_their_parents(place: str, index: int) -> None:
    parent = new_id()
    child = derived_id(parent, place, index)
    assert UUID7.fullmatch(child)
    assert child[:13] == parent[:13]


# --- two forms of a body


def test_bytes_are_parsed_once_and_kept_as_they_came() -> None:
    formats = Counting()
    message = Message(raw=b" x ", formats=formats)
    assert (message.tree, message.tree, message.body) == (" x ", " x ", b" x ")
    assert (formats.parsed, formats.written) == (1, 0)


def test_a_tree_is_written_once_when_somebody_needs_bytes() -> None:
    formats = Counting()
    message = Message(parsed="x", formats=formats)
    assert (message.body, message.body) == (b"x", b"x")
    assert (formats.parsed, formats.written) == (0, 1)


def test_a_tree_that_is_null_is_a_tree() -> None:
    message = Message(parsed=None, formats=Counting())
    assert message.tree is None
    assert message.body == b"None"


def test_a_message_without_a_body_has_no_bytes() -> None:
    assert Message().body == b""


def test_a_tree_that_can_be_parsed_again_may_be_forgotten() -> None:
    formats = Counting()
    message = Message(raw=b"x", formats=formats)
    assert message.tree == "x"
    message.forget_tree()
    assert message.tree == "x"
    assert formats.parsed == 2
    only_tree = Message(parsed="y", formats=formats)
    only_tree.forget_tree()
    assert only_tree.tree == "y"


def test_outside_of_a_route_there_are_no_formats() -> None:
    with pytest.raises(MessageError, match="no format was lent to parse 'application/json'; is it outside a route"):
        _ = Message(raw=b"{}").tree
    with pytest.raises(MessageError, match="no format was lent to format 'text/plain'; is it outside a route"):
        _ = Message(parsed="x", content_type="text/plain").body


# --- copies


def test_a_copy_with_another_body_leaves_the_original_alone() -> None:
    formats = Counting()
    original = Message(raw=b"x", formats=formats, subject="s", content_type="text/plain")
    assert original.tree == "x"
    changed = original.with_tree({"a": 1}, JSON)
    written = original.with_body(b"y")
    assert (changed.tree, changed.raw, changed.content_type, changed.subject) == ({"a": 1}, None, JSON, "s")
    assert (written.body, written.tree, written.content_type) == (b"y", "y", "text/plain")
    assert (original.body, original.tree, original.content_type) == (b"x", "x", "text/plain")
    assert changed.id == written.id == original.id


def test_a_replaced_field_is_the_only_change() -> None:
    original = Message(raw=b"x", headers={"a": "1"}, priority=3)
    copy = original.replace(priority=9)
    assert (copy.priority, original.priority) == (9, 3)
    assert (copy.raw, copy.headers, copy.id) == (original.raw, original.headers, original.id)


def test_a_child_has_an_id_of_its_own_and_its_cause() -> None:
    parent = Message(raw=b"x", correlation_id="c")
    child = parent.child("steps.0.split", 2)
    assert child.id == derived_id(parent.id, "steps.0.split", 2)
    assert (child.causation_id, child.correlation_id, child.body) == (parent.id, "c", b"x")


def test_messages_have_an_identity_and_no_equality() -> None:
    one = Message(raw=b"x", id="i", time_s=0)
    assert one != Message(raw=b"x", id="i", time_s=0)
    assert one in {one}


def test_what_is_not_said_is_not_shared() -> None:
    with pytest.raises(TypeError):
        Message(b"x")  # type: ignore[call-arg,arg-type]
    assert (Message().headers, Message().transport, Message().context) == ({}, {}, {})
    assert (Message().content_type, Message().priority, Message().principal) == (JSON, 0, None)


# --- outcomes and moments


@pytest.mark.parametrize("outcome", [Accepted("i"), Refused("i", "no"), Deferred("i", "busy")], ids=repr)
def test_outcomes_do_not_change_and_are_equal_by_value(outcome: Any) -> None:
    assert outcome == type(outcome)(*[getattr(outcome, name) for name in outcome.__struct_fields__])
    with pytest.raises(AttributeError):
        outcome.id = "j"


def test_a_deferral_asks_for_a_second_unless_told_otherwise() -> None:
    deferred = Deferred("i", "busy")
    assert (deferred.wait_s, deferred.too_late, deferred.answerless) == (1.0, False, False)
    assert Refused("i", "no").code == "refused"


@pytest.mark.parametrize(
    ("time_s", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1_795_228_474.125, "2026-11-21T02:34:34.125Z"),
        (1_795_228_474.0, "2026-11-21T02:34:34.000Z"),
    ],
)
def test_a_moment_is_written_as_rfc_3339_says(time_s: float, text: str) -> None:
    assert rfc3339(time_s) == text

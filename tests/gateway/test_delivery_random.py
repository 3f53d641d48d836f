"""Random failures, keys and restarts: order per key and target is kept, everything arrives once, nothing is left."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

import pytest

from adapters.memory import box
from gateway import Message, PeerError
from gateway.testing import settle
from tests.gateway.test_delivery import Bench, sent

YAML = """
version: 1
routes:
  r:
    from: {memory: {name: in}}
    order_by: body.k
    concurrency: 3
    limits: {in_memory: 6}
    steps: [STEPS]
    to:
      - {memory: {name: a}, name: a, when: body.n % 3 != 0, retry: {attempts: 1000, first_wait: 1s, max_wait: 4s}}
      - {memory: {name: b}, name: b, retry: {attempts: 1000, first_wait: 1s, max_wait: 4s}}
"""
PLAIN, WAITING = "{set: {type: changed}}", "{choose: [{when: body.n > 5, steps: [{set: {type: large}}]}]}"


async def play(bench: Bench, luck: random.Random) -> int:
    number = 0
    for _ in range(3):  # a restart each
        async with bench.running() as route:
            for _ in range(25):
                for name in ("a", "b"):
                    box(name).failing = PeerError("away") if luck.random() < 0.4 else None
                for _ in range(luck.randrange(3)):
                    tree = {"k": luck.choice("xyz"), "n": number}
                    await route.take(Message(raw=None, parsed=tree), answers=True, type_="test")
                    number += 1
                await settle(luck.randrange(30))
                if luck.random() < 0.5:
                    await bench.clock.advance(luck.random() * 3)
    box("a").failing = box("b").failing = None
    async with bench.running():
        for _ in range(60):
            await settle(60)
            await bench.clock.advance(5)
    return number


@pytest.mark.parametrize("steps", [PLAIN, WAITING], ids=["plain", "waiting"])
@pytest.mark.parametrize("seed", range(12))
async def test_order_is_kept_and_everything_arrives_once(tmp_path: Path, seed: int, steps: str) -> None:
    box("a").received.clear()
    box("b").received.clear()
    bench = Bench(tmp_path, YAML.replace("STEPS", steps))
    number = await play(bench, random.Random(seed))
    assert set(bench.states()) <= {"delivered"}
    for name, expected in (("a", [n for n in range(number) if n % 3]), ("b", list(range(number)))):
        by_key: dict[str, list[int]] = defaultdict(list)
        for tree in sent(name):
            by_key[tree["k"]].append(tree["n"])
        assert all(numbers == sorted(numbers) for numbers in by_key.values()), (name, by_key)
        assert sorted(tree["n"] for tree in sent(name)) == expected

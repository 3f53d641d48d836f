"""The bodies that are sent: an order as JSON of about 500 bytes or 10 kB, an HL7 admission, a line."""

from __future__ import annotations

import json
from typing import Any


def order(size: int, total: str) -> bytes:
    """An order of at most `size` bytes and nearly as many, with this total."""
    items: list[dict[str, Any]] = []
    while len(_order(items, total)) <= size:
        items.append({"sku": f"SKU-{len(items):05d}", "qty": len(items) % 9 + 1, "price": 19.25 + len(items)})
    items.pop()
    return _order(items, total)


def _order(items: list[dict[str, Any]], total: str) -> bytes:
    head = {
        "id": "2026-11-21-000471",
        "customer": {"name": "Anna Muster", "city": "Zürich", "mail": "anna.muster@shop.example"},
        "paid": True,
        "note": None,
    }
    text = json.dumps({**head, "items": items}, separators=(",", ":"), ensure_ascii=False)
    return f'{text[:-1]},"total":{total}}}'.encode()


BIG_TOTAL, SMALL_TOTAL = "1200.50", "99.95"
ORDER = order(500, BIG_TOTAL)
SMALL_ORDER = order(500, SMALL_TOTAL)
LARGE_ORDER = order(10_000, BIG_TOTAL)

LINE = b'{"sku":"X100","qty":25,"place":"A-17","at":"2026-11-21T08:30:00Z","count":4711}'

ADMISSION = "\r".join(
    [
        "MSH|^~\\&|HIS|WARD|GATEWAY|LAB|20261121083000||ADT^A01^ADT_A01|M000001|P|2.5",
        "EVN|A01|20261121083000",
        "PID|1||4711^^^HOSPITAL^MR||Muster^Anna^^^Dr.||19700131|F|||Bahnhofstrasse 1^^Zürich^^8001^CH||+41441234567",
        "NK1|1|Muster^Peter|SPO|Bahnhofstrasse 1^^Zürich^^8001^CH|+41441234568",
        "PV1|1|I|WARD^101^A^HOSPITAL||||0123^House^Gregory|||MED||||1|||0123^House^Gregory|INP|V000001",
        "OBX|1|NM|8867-4^Heart rate^LN||72|/min|60-100|N|||F",
        "",
    ]
).encode()

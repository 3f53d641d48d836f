"""What `gateway init` writes: a first configuration that runs, and its schema for editors."""

from __future__ import annotations

import json
from pathlib import Path

from gateway.errors import ConfigError
from gateway.schema import schema

ROUTES = """\
# yaml-language-server: $schema=./routes.schema.json
# Check this file with: gateway check      Run it with: gateway run
version: 1

gateway:
  name: my-gateway                      # in logs, metrics and the source of messages
  data: ./var                           # stored messages, and the token of the API

routes:
  orders:
    description: Orders come by HTTP, are checked and stored, and end up in a file, one line each
    from: {http: {listen: "127.0.0.1:8081", path: /orders}}
    accept:
      - validate: {schema: order.json}  # what does not keep to it is refused to its sender (422)
    ack: stored                         # the sender gets 202 once the order is safe on disk; delivery follows
    steps:
      - set: {type: order.placed, subject: "{{ body.id }}"}
      - map:                            # the new body
          id: "{{ body.id }}"
          customer: "{{ body.customer | default('unknown') | upper }}"
          total: "{{ body.total }}"
    to:
      - file: {path: var/orders.jsonl}
      - log: {text: "order {{ body.id }} over {{ body.total }}"}
        name: large-orders
        when: body.total >= 1000        # this target takes only these

# What else there is: gateway list, and gateway doc http
"""

ORDER = """\
{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "title": "Order",
  "examples": [{"id": "A1", "customer": "north", "total": 1250.5}],
  "type": "object",
  "required": ["id", "total"],
  "properties": {
    "id": {"type": "string", "minLength": 1},
    "customer": {"type": "string"},
    "total": {"type": "number", "exclusiveMinimum": 0}
  }
}
"""


def start(folder: Path) -> list[Path]:
    """Writes the files into the folder and gives their paths.

    Raises:
        ConfigError: there is a routes.yaml or order.json already, or the folder can't be written.
    """
    routes, order, editor = (folder / name for name in ("routes.yaml", "order.json", "routes.schema.json"))
    taken = [path for path in (routes, order) if path.exists()]
    if taken:
        raise ConfigError(f"{taken[0]}: it is there already and stays as it is; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in ((routes, ROUTES), (order, ORDER)):
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        editor.write_text(json.dumps(schema(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{error.filename or folder}: it can't be written: {error.strerror}") from error
    return [routes, order, editor]

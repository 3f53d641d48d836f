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
      - filter: body.total > 0          # what a filter ends is answered 202 and goes no further
    ack: stored                         # the sender gets 202 once the order is safe on disk; delivery follows
    steps:
      - set: {type: order.placed, subject: "{{ body.id }}"}
      - map:                            # the new body
          id: "{{ body.id }}"
          customer: "{{ body.customer | default('unknown') }}"
          total: "{{ body.total }}"
    to:
      - file: {path: var/orders.jsonl}
      - log: {text: "order {{ body.id }} over {{ body.total }}"}
        name: large-orders
        when: body.total >= 1000        # this target takes only these

# What else there is: gateway list, and gateway doc http
"""


def start(folder: Path) -> list[Path]:
    """Writes the files into the folder and gives their paths.

    Raises:
        ConfigError: there is a routes.yaml already, or the folder can't be written.
    """
    routes, editor = folder / "routes.yaml", folder / "routes.schema.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with routes.open("x", encoding="utf-8") as file:
            file.write(ROUTES)
        editor.write_text(json.dumps(schema(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except FileExistsError as error:
        raise ConfigError(f"{error.filename}: it is there already and stays as it is; name another folder") from error
    except OSError as error:
        raise ConfigError(f"{error.filename or folder}: it can't be written: {error.strerror}") from error
    return [routes, editor]

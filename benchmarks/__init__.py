"""How fast the gateway is beside bare loops of the same libraries, in the same run: `python -m benchmarks`."""

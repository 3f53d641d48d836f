"""What all tests have in common."""

from __future__ import annotations

import os

from hypothesis import settings

# A check that lets changes in or keeps them out must say the same twice; whoever works on the code looks for news.
settings.register_profile("ci", derandomize=True, database=None)
if os.environ.get("CI"):
    settings.load_profile("ci")

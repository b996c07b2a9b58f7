"""The progress bar of everything that takes long."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(**options: Any) -> tqdm:
    """A bar of tqdm on stderr; in a notebook on stdout, since stderr looks like an error there (on red ground)."""
    in_notebook = type(sys.stderr).__module__.startswith("ipykernel")
    return tqdm(file=sys.stdout if in_notebook else sys.stderr, **options)

"""The progress bar of everything that takes long."""

from __future__ import annotations

import os
import sys
from typing import Any

from tqdm import tqdm


def progress_bar(**options: Any) -> tqdm:
    """A bar of tqdm on stderr; in a notebook on stdout, since stderr looks like an error there (on red ground).

    JPY_PARENT_PID is set for a kernel and inherited by its worker processes, whose bars appear in the notebook too.
    """
    return tqdm(file=sys.stdout if "JPY_PARENT_PID" in os.environ else sys.stderr, **options)

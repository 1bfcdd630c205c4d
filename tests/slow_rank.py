"""launch/train.py, with one rank whose batches come late: slow_rank.py RANK SECONDS [arguments of launch/train.py]."""

from __future__ import annotations

import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

from nano_ds.data import Loader

rank, seconds = int(sys.argv[1]), float(sys.argv[2])
sys.argv[1:3] = []
if int(os.environ["RANK"]) == rank:
    next_step = Loader.next_step

    def late(self: Loader) -> Any:
        time.sleep(seconds)
        return next_step(self)

    Loader.next_step = late  # type: ignore[method-assign]
runpy.run_path(str(Path(__file__).resolve().parent.parent / "launch" / "train.py"), run_name="__main__")

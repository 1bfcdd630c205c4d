"""How a process of a run ends."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """Ends this process now, with everything that it said written out.

    The interpreter is not shut down. A thread of gloo may still be about to let go of the tensor of the last
    collective, and doing so in a half-closed interpreter aborts a process that has done all its work
    (https://github.com/pytorch/pytorch/issues/190489).
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

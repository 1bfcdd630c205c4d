"""What runs on a node for `nano-ds prepare --hostfile` (`python -m nano_ds.prepare.node`): makes one part.

The first line of stdin is the job, as JSON. The rest of stdin is a leash: when it ends, whoever asked for the part is
gone (stopped, killed, cut off), and so is this process; no signal has to find its way over ssh. Each line of stdout is
a JSON object: {"consumed": bytes} while it works, {"done": the part's checksum, "total": bytes, "note": …} at the end.
Errors go to stderr as a line, with the exit code of every command of ours.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from nano_ds.cli import guard
from nano_ds.prepare.cluster import GRACE, PROGRAM


def main() -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # who starts us in the background may have it ignored
    line = sys.stdin.readline()
    return guard(PROGRAM, lambda: _work(json.loads(line)))


def _follow() -> None:
    while os.read(0, 1 << 16):  # not through sys.stdin: its lock, held here, would be a fatal error at the end
        pass
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(GRACE)
    os._exit(1)


def _work(job: dict[str, Any]) -> int:
    from nano_ds.prepare.parts import Part, prepare_part, remove_parts
    from nano_ds.tokenizer import load_tokenizer

    if "remove" in job:
        remove_parts(Path(job["remove"]))
        return 0
    threading.Thread(target=_follow, daemon=True).start()
    with tempfile.TemporaryDirectory() as tmp:
        vocabulary = Path(tmp) / "tokenizer.json"
        vocabulary.write_text(job["tokenizer"], encoding="utf-8")
        tokenizer = load_tokenizer(vocabulary)
    since, told = 0, time.monotonic()

    def progress(count: int) -> None:
        nonlocal since, told
        since += count
        if time.monotonic() - told > 0.2:
            _say(consumed=since)
            since, told = 0, time.monotonic()

    part = Part(job["part"], job["parts"])
    done = prepare_part(job["texts"], tokenizer, job["out"], part, workers=job["workers"], progress=progress)
    _say(done=done.facts["check"], total=done.facts["consumed"], note=done.note)
    return 0


def _say(**fact: Any) -> None:
    print(json.dumps(fact), flush=True)


if __name__ == "__main__":
    sys.exit(main())

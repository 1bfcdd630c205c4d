"""Writes docs/reliability.md from what the tests recorded.

python tests/cluster/report.py runs/faults.json docs/reliability.md
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

INTRO = """\
# What a run survives

Made by the test run (`make test-full` writes it; {when}, commit {commit}, {cores} cores, Linux {kernel}); nothing here
is written by hand. Each row was done to a real run of two processes with dropout at ZeRO stage 1, on one machine or on
two hosts made of Linux namespaces, each with its own network, ssh server, host name and process ids. "Exact" means that
the run then ended with the losses, parameters, optimiser state and random states of a run that nothing happened to,
byte for byte. Seconds count from the fault until no process of the run was left on any host (or, where it went on,
until it had ended); the machine was busy with other work.
"""


def minutes(seconds: float) -> str:
    return "" if not seconds else f"{seconds:.0f} s"


def row(name: str, facts: dict[str, Any]) -> str:
    resumed = facts["resumed"]
    then = "" if resumed is None else f"from step {resumed}" if resumed else "from the start: no checkpoint yet"
    exact = {True: "exact", False: "NOT EXACT", None: ""}[facts["exact"]]
    # Folders of the test run say nothing to a reader.
    line = re.sub(r"(/[\w.+-]+)+/(?=[\w.+-]+)", "", facts["line"]).replace("|", "/")
    where = "hosts" if facts["hosts"] else "one machine"
    after = ", ".join(x for x in (then, exact) if x)
    return f"| {name} | {where} | {facts['code']} | {line} | {minutes(facts['seconds'])} | {after} |"


def text(tree: dict[str, dict[str, dict[str, Any]]]) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    kernel = ".".join(platform.release().split(".")[:2])
    out = [INTRO.format(when=date.today(), commit=commit, cores=os.cpu_count(), kernel=kernel)]
    groups = (
        ("goes on", "Faults that a run goes on through, by itself or restarted by `--restarts`"),
        ("ends, goes on", "Faults that end a run; the same command then goes on from its last checkpoint"),
        ("refused", "What is refused before anything is started"),
    )
    for wanted, title in groups:
        rows = [(name, facts) for name, facts in tree.get("faults", {}).items() if facts["wanted"] == wanted]
        if rows:
            out += [
                f"## {title}\n",
                "| fault | where | exit code | what it says | time | then |",
                "|---|---|---|---|---|---|",
            ]
            out += [row(*r) for r in rows] + [""]
    chaos = tree.get("chaos", {})
    if chaos:
        out += [
            "## Chaos\n",
            "A run of 200 steps, killed (one rank, or all processes) at random moments, started again by the same "
            "command each time. All ended exact, and no checkpoint that was found in between was torn.\n",
            "| run | seed | kills inside a save | steps done again |",
            "|---|---|---|---|",
        ]
        out += [f"| {n} | {f['seed']} | {f['inside']} | {f['steps_done_again']} |" for n, f in chaos.items()] + [""]
    return "\n".join(out)


def main() -> None:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    tree = json.loads(source.read_text(encoding="utf-8"))
    target.write_text(text(tree).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

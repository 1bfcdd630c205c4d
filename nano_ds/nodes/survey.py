"""Asks every node at the same time what it is and has."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from nano_ds.config import Config
from nano_ds.nodes import ssh
from nano_ds.nodes.launcher import Place
from nano_ds.start_from import tokenizer_of


@dataclass(frozen=True)
class Node:
    """One column of the doctor's table: what was found, or why nothing was."""

    host: str
    slots: int = 1
    facts: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""  # in a few words, where the node gave no facts
    fix: str = ""
    skew: float = 0.0  # seconds its clock is ahead, as far as the time of the answer can tell


def request_for(recipe: str | None, config: Config | None, full: bool = False) -> dict[str, Any]:
    """What the nodes have to look at for this run; ``full``: for the doctor, not only to decide about a start."""
    out: dict[str, Any] = {"full": full}
    if config is None:
        return out
    if full and config.run.mirror:
        out["mirror"] = config.run.mirror  # a run goes on without it, so a start does not depend on it
    return out | {
        "recipe": recipe,
        "ds_config": config.run.deepspeed_config,
        "tokenizer": tokenizer_of(config),
        "sets": [s.dir for s in config.data.sets],
        "run_dir": config.run.dir,
    }


def this_machine(request: Mapping[str, Any], name: str, slots: int) -> Node:
    """The facts of this machine, gathered in this process's own environment but not in this process."""
    return _ask(name, slots, dict(request), over_ssh=False)


def ask_all(place: Place, request: Mapping[str, Any]) -> list[Node]:
    """The nodes of a run in the order of the hostfile, all reached as the launcher reaches them."""
    hosts = list(place.hosts.items())

    def one(entry: tuple[str, int]) -> Node:
        own = dict(request) | {"peers": [h for h, _ in hosts if h != entry[0]]}
        if entry != hosts[0]:
            own.pop("mirror", None)  # rank 0 alone writes it
        return _ask(*entry, own, over_ssh=True)

    with ThreadPoolExecutor(max_workers=max(1, len(hosts))) as pool:
        return list(pool.map(one, hosts))


def _ask(host: str, slots: int, request: Mapping[str, Any], over_ssh: bool) -> Node:
    words = ssh.python("-m", "nano_ds.nodes.probe", json.dumps(request))
    began = time.time()
    done = ssh.run(
        host if over_ssh else "localhost", words, timeout=120 if request.get("full") else 30, even_here=over_ssh
    )
    ended = time.time()
    try:
        facts = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        problem, fix = ssh.diagnose(host, done)
        return Node(host, slots, problem=problem, fix=fix)
    now = float(facts["time"])
    # The clock was read at some moment between question and answer.
    skew = now - ended if now > ended else now - began if now < began else 0.0
    return Node(host, slots, facts, skew=skew)

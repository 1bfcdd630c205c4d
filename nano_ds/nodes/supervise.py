"""Runs training to its end: checks the nodes, starts it, and after a failure goes on from its last checkpoint."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import FrameType

from nano_ds.config import Config
from nano_ds.ds_config import micro_batches, offload_ops
from nano_ds.errors import UserError
from nano_ds.monitor import duration, say
from nano_ds.nodes import checks, launcher, survey, table
from nano_ds.nodes.attempt import PREFIX, Attempt, Outcome, end_run, report
from nano_ds.nodes.hostfile import is_local
from nano_ds.nodes.launcher import DEFAULT_PORT, Launch, Place
from nano_ds.nodes.probe import newest_step

LONGEST_PAUSE = 300.0


@dataclass(frozen=True)
class Policy:
    """When a failed run is started again.

    Attributes:
        restarts: failures in a row, without a new checkpoint in between, that are answered with another start.
        backoff: seconds before the first restart; doubles up to five minutes.
        min_nodes: nodes to go on with when others are gone; None: all.
        check: ask every node before a start.
    """

    restarts: int = 0
    backoff: float = 5.0
    min_nodes: int | None = None
    check: bool = True


@dataclass(frozen=True)
class Job:
    """What is trained, where, with which arguments of launch/train.py (all but ``--resume``)."""

    recipe: str
    config: Config
    place: Place
    args: Sequence[str]
    overrides: Sequence[str]
    resume: str


@dataclass(frozen=True)
class Record:
    """One attempt, for the table at the end and for restarts.jsonl."""

    began: str
    seconds: float
    from_step: int
    to_step: int
    nodes: Mapping[str, int]
    code: int
    cause: str


class Supervisor:
    def __init__(self, job: Job, policy: Policy, wanted: checks.Wanted):
        self.job, self.policy, self.wanted = job, policy, wanted
        self.run_dir = Path(job.config.run.dir)
        self.log = self.run_dir / "launch.log"
        self.records: list[Record] = []
        self.step = 0
        self.last: Launch | None = None

    def run(self) -> int:
        """Returns the exit code: 0 trained or stopped by a signal, 2 the user's mistake, 1 given up."""
        place, problem = self._survey(self.job.place, first=True)
        in_vain = 0
        while True:
            began, start, before = datetime.now(), time.monotonic(), self.step
            outcome = self._attempt(place) if place is not None else Outcome(1, problem)
            tried = place or self.job.place
            if outcome.code == 0 or outcome.code == 2 or outcome.stopped or not self.policy.restarts:
                report(outcome, self.log)
                if self.records:
                    self._update_step(tried)
                    self._record(began, start, before, outcome, tried)
                return 128 + outcome.stopped if outcome.code and outcome.stopped else outcome.code
            self._update_step(tried)
            self._record(began, start, before, outcome, tried)
            in_vain = 0 if self.step > before else in_vain + 1
            if in_vain > self.policy.restarts:
                self._give_up(outcome)
                return 1
            # A run that makes progress gets the short pause again.
            pause = min(LONGEST_PAUSE, self.policy.backoff * 2 ** max(0, in_vain - 1))
            report(outcome, None)
            left = f"restart {max(1, in_vain)} of {self.policy.restarts} without a new checkpoint"
            say(f"{PREFIX}starts again from step {self.step} in {duration(pause)} ({left})")
            stopped = _sleep(pause)
            if stopped:
                say(f"{PREFIX}stopped while waiting to start again; the same command goes on from step {self.step}")
                return 128 + stopped
            place, problem = self._survey(self.job.place, first=False)

    def _attempt(self, place: Place) -> Outcome:
        resume = self.job.resume
        if self.records and (resume == "none" or self.step):
            resume = "auto"  # what the last attempt committed comes after any checkpoint that was named
        with launcher.workplace() as folder:
            args = [*self.job.args, "--resume", resume, *self.job.overrides]
            if self.last is not None:
                end_run(self.last)  # what was in the dark when it failed may be within reach now
            self.last = launcher.prepare(args, place, Path(folder))
            return Attempt(self.last, self.log).run()

    def _survey(self, place: Place, first: bool) -> tuple[Place | None, str]:
        """The place to start at, now that every node was asked; None and the reason when the run cannot start.

        Raises:
            UserError: before the first start, with the table of what is wrong.
        """
        if place.node_rank is not None or not place.hosts:
            self.step = newest_step(self.run_dir)
            if self.policy.check and place.hosts:
                assert place.node_rank is not None
                self._check_this_node(place)
            return place, ""
        launcher.check_launcher(place)
        if not self.policy.check:
            return place, ""
        nodes, rows = ask(survey.request_for(self.job.recipe, self.job.config), place, self.wanted)
        self.step = max([self.step, *(int(n.facts.get("step", 0)) for n in nodes)])
        bad = set().union(*(r.failing for r in rows))
        if bad and first:
            wrong = checks.failing(rows)
            print(table.text(wrong, [n.host for n in nodes]), file=sys.stderr)
            count = f"{len(wrong)} check{'s' * (len(wrong) > 1)} of the nodes failed"
            raise UserError(
                f"{count}, see above; nothing was started (`nano-ds doctor` shows all, --no_check skips this)"
            )
        if bad:
            why = next((f for r in checks.failing(rows) for f in r.fixes), "a node is not ready")
            smaller = self._without(place, bad)
            if smaller is None:
                return None, f"not all nodes are ready: {why}"
            say(f"{PREFIX}goes on with {', '.join(smaller.hosts)}; left out: {why}")
            place = smaller
            nodes = [n for n in nodes if n.host in place.hosts]
        return settle(place, nodes), ""

    def _check_this_node(self, place: Place) -> None:
        """Without ssh, each node can look at itself only."""
        host = list(place.hosts)[place.node_rank or 0]
        others = [h for h in place.hosts if h != host]
        request = survey.request_for(self.job.recipe, self.job.config) | {"peers": others}
        node = survey.this_machine(request, host, place.hosts[host])
        wrong = checks.failing(checks.judge([node], self.wanted))
        if wrong:
            print(table.text(wrong, [host]), file=sys.stderr)
            raise UserError("this node is not ready, see above; nothing was started (--no_check skips this)")

    def _without(self, place: Place, bad: set[str]) -> Place | None:
        """The largest number of remaining nodes that the batch can be shared by, or None when that is too few."""
        least = self.policy.min_nodes if self.policy.min_nodes is not None else len(place.hosts)
        left = {h: n for h, n in place.hosts.items() if h not in bad}
        while left and len(left) >= least:
            try:
                micro_batches(self.job.config, sum(left.values()))
                return replace(
                    place, hosts=left, master_addr=None if next(iter(place.hosts)) in bad else place.master_addr
                )
            except UserError:
                left.popitem()
        return None

    def _update_step(self, place: Place) -> None:
        if not place.remote or is_local(next(iter(place.hosts))):
            self.step = max(self.step, newest_step(self.run_dir))
            return
        nodes = survey.ask_all(place, {"run_dir": self.job.config.run.dir})
        self.step = max([self.step, *(int(n.facts.get("step", 0)) for n in nodes)])

    def _record(self, began: datetime, start: float, before: int, outcome: Outcome, place: Place) -> None:
        record = Record(
            began.isoformat(timespec="seconds"),
            round(time.monotonic() - start, 1),
            before,
            self.step,
            dict(place.hosts) or {"localhost": place.processes},
            outcome.code,
            outcome.cause,
        )
        self.records.append(record)
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            with open(self.run_dir / "restarts.jsonl", "a", encoding="utf-8") as f:
                f.write(json.dumps(record.__dict__) + "\n")
        except OSError as e:
            say(f"{PREFIX}cannot write {self.run_dir}/restarts.jsonl: {e.strerror}")

    def _give_up(self, outcome: Outcome) -> None:
        say(attempts_table(self.records))
        report(
            replace(
                outcome,
                cause=f"gave up after {self.policy.restarts} restarts without a new checkpoint: {outcome.cause}",
            ),
            self.log,
        )


def attempts_table(records: Sequence[Record]) -> str:
    """The attempts of a run, a line each."""
    head = ("began", "lasted", "from step", "to step", "nodes", "how it ended")
    rows = [
        (r.began, duration(r.seconds), str(r.from_step), str(r.to_step), ", ".join(r.nodes), r.cause or "well")
        for r in records
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows))


def ask(
    request: Mapping[str, object], place: Place, wanted: checks.Wanted
) -> tuple[list[survey.Node], list[checks.Row]]:
    """Every node's facts and the rows of the table, judged against this machine."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        this = pool.submit(survey.this_machine, {**request, "full": False}, "here", 1)
        nodes = survey.ask_all(place, request)
        here = this.result()
    return nodes, checks.judge(nodes, wanted, here)


def wanted_of(config: Config, tree: Mapping[str, object]) -> checks.Wanted:
    """What a recipe asks of its nodes."""
    from nano_ds.model import parameter_count
    from nano_ds.model_dir import model_adapter_shapes
    from nano_ds.start_from import resolved_if_here
    from nano_ds.tokenizer import load_tokenizer

    config = resolved_if_here(config)
    model, lora = config.model, config.lora
    if not config.train.init_from and config.data.tokenizer and Path(config.data.tokenizer).is_file():
        model = replace(model, vocab_size=load_tokenizer(config.data.tokenizer).vocab_size)
    count = parameter_count(model)["total"]
    if lora.rank:
        count = sum(map(math.prod, model_adapter_shapes(model, lora.rank, lora.targets).values()))
    t = config.train
    # fp32 weights, two moments and a copy of the parameters, as the checkpoint writer reckons
    return checks.Wanted(
        checkpoint_bytes=17 * count + (1 << 20),
        keep=t.keep_last,
        bf16=t.dtype == "bf16",
        ops=offload_ops(tree),
        backend=config.run.backend,
    )


def settle(place: Place, nodes: Sequence[survey.Node]) -> Place:
    """Fills in where the processes meet: the first node's own word on its address, and a port that is free there."""
    first = nodes[0].facts
    address = place.master_addr or first.get("address") or launcher.master_address(list(place.hosts))
    return replace(place, master_addr=address, master_port=place.master_port or first.get("free_port", DEFAULT_PORT))


def _sleep(seconds: float) -> int:
    """Waits; returns the number of the signal that ended it, or 0."""
    got: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        got.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {
        n: signal.signal(n, note) for n in numbers
    }
    try:
        end = time.monotonic() + seconds
        while not got and time.monotonic() < end:
            time.sleep(min(0.1, max(0.0, end - time.monotonic())))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return got[0] if got else 0

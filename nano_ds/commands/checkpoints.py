"""`nano-ds checkpoints`."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

HELP = """\
List the checkpoints of a run: step, training and validation loss, size, state.

  nano-ds checkpoints runs/demo                every checkpoint, judged by its files' sizes
  nano-ds checkpoints runs/demo --verify       reads every byte and compares checksums
  nano-ds checkpoints runs/demo --json         the same for scripts
  nano-ds checkpoints runs/demo/checkpoints/step-00000200 --verify

States: committed (whole), apart (some files are on other machines, see `nano-ds consolidate --hostfile`), torn (never
finished, or files are gone), damaged (a file is not what was written), being written (by a run that trains right now).
Training goes on from the newest one that is whole, and says which it skipped; what was never finished is removed when
the run goes on. Exit code 1 when one is torn or damaged."""

WRITING = "being written"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    where = "run directory, mirror, their checkpoints folder, or one checkpoint (step-…)"
    parser.add_argument("run_dir", metavar="RUN", type=Path, help=where)
    parser.add_argument("--verify", action="store_true", help="read every byte (takes as long as reading the files)")
    parser.add_argument("--json", action="store_true", help="one JSON object per checkpoint, with its files")


def run(args: argparse.Namespace) -> int:
    facts = list(_facts(args.run_dir, args.verify))
    if args.json:
        for one in facts:
            print(json.dumps(one))
    elif facts:
        print(table(facts))
    else:
        print(f"{args.run_dir}: no checkpoint yet")
    return 1 if any(one["state"] in ("torn", "damaged") for one in facts) else 0


def _facts(where: Path, deep: bool) -> Iterator[dict[str, Any]]:
    """The rows of a checkpoint, or of a whole run in the order of the steps; raises UserError when it is neither."""
    from tqdm import tqdm

    from nano_ds import checkpoint
    from nano_ds.errors import UserError

    if checkpoint.is_checkpoint(where):
        if not where.is_dir():
            raise UserError(f"{where}: no such checkpoint")
        yield describe(where, deep)
        return
    root = checkpoint.root_of(where)
    staged = checkpoint.unfinished(root)
    steps = staged | {folder: int(folder.name.removeprefix("step-")) for folder in checkpoint.folders(root)}
    order = sorted(steps, key=lambda p: (steps[p], p.name))
    bar = tqdm(order, "verify", unit=" checkpoints", leave=False, disable=None if deep else True)
    for folder in bar:
        one = describe_staging(folder, staged[folder]) if folder in staged else describe(folder, deep)
        if folder.exists():  # a run that trains renames and deletes meanwhile
            yield one


def describe(folder: Path, deep: bool) -> dict[str, Any]:
    """One checkpoint folder as plain values. ``good`` names the files that are here and as they were written."""
    from nano_ds import checkpoint
    from nano_ds.errors import UserError

    health = checkpoint.inspect(folder, deep)
    state, why, saved = health.state, health.why, {}
    try:
        saved = checkpoint.read_state(folder).state
    except UserError as e:
        if not why:  # COMMIT was written for it, or its bytes were not read
            state, why = "damaged", str(e).rpartition("cannot be used: ")[2]
    progress = saved.get("progress", {})
    written = None
    with contextlib.suppress(OSError):
        written = (folder / checkpoint.COMMIT).stat().st_mtime if health.files else None
    return {
        "path": str(folder.absolute()),
        "step": int(folder.absolute().name.removeprefix("step-")),
        "state": state,
        "why": why,
        "loss": _number(progress.get("loss")),
        "val_loss": _number(progress.get("val_loss")),
        "tokens": _number(saved.get("tokens")),
        "zero_stage": _number(saved.get("zero_stage")),
        "world_size": _number(saved.get("world_size")),
        "bytes": sum(size for size, _ in health.files.values()),
        "written": written,
        "files": dict(health.files),
        "hosts": dict(health.hosts),
        "good": sorted(health.good),
    }


def describe_staging(folder: Path, step: int) -> dict[str, Any]:
    """A save that has not come to its end, in the form of ``describe``: torn, or the work of a run that trains now."""
    nothing = dict.fromkeys(("loss", "val_loss", "tokens", "zero_stage", "world_size", "written"))
    state, why = (WRITING, "") if is_held(folder.absolute().parent) else ("torn", "it was never finished")
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            size += path.stat().st_size if path.is_file() else 0
    head = {"path": str(folder.absolute()), "step": step, "state": state, "why": why}
    return {**head, **nothing, "bytes": size, "files": {}, "hosts": {}, "good": []}


def is_held(root: Path) -> bool:
    """Whether a process trains in the run of these checkpoints, or mirrors one here (``nano_ds.run_dir.lock``)."""
    for lock in (root.parent / ".lock", root / ".lock"):
        with contextlib.suppress(FileNotFoundError, PermissionError), open(lock, "rb") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def _number(value: object) -> int | float | None:
    """What a state file may hold where a number is expected; None for anything else."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def table(facts: Sequence[Mapping[str, Any]]) -> str:
    """Rows for a person."""
    losses = [f["val_loss"] for f in facts if f["val_loss"] is not None and math.isfinite(f["val_loss"])]
    rows = [("step", "loss", "val loss", "size", "ZeRO", "written (UTC)", "state")]
    for f in facts:
        loss = "-" if f["loss"] is None else f"{f['loss']:.4f}"
        best = bool(losses) and f["val_loss"] == min(losses)
        val_loss = "-" if f["val_loss"] is None else f"{f['val_loss']:.4f}" + " *" * best
        written = "-"
        if f["written"]:
            written = datetime.fromtimestamp(f["written"], timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
        size = f"{f['bytes'] / 1e6:,.1f} MB" if f["bytes"] else "-"
        layout = "-" if f["zero_stage"] is None else f"{f['zero_stage']} x {f['world_size']}"
        state = f["state"] + (f": {f['why']}" if f["why"] else "")
        rows.append((str(f["step"]), loss, val_loss, size, layout, written, state))
    last = len(rows[0]) - 1
    widths = [max(len(row[i]) for row in rows) for i in range(last)]
    lines = ["  ".join([*(f"{c:>{w}}" for c, w in zip(row, widths, strict=False)), row[last]]) for row in rows]
    return "\n".join([*lines, "* lowest validation loss"] if losses else lines)

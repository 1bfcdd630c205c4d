"""`nano-ds checkpoints`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

HELP = """\
List the checkpoints of a run: step, validation loss, size, state.

  nano-ds checkpoints runs/demo                every checkpoint, judged by its files' sizes
  nano-ds checkpoints runs/demo --verify       reads every byte and compares checksums
  nano-ds checkpoints runs/demo --json         the same for scripts

States: committed (whole), apart (some files are on other machines, see `nano-ds consolidate --hostfile`), torn (never
finished, or files are gone), damaged (a file is not what was written). Training goes on from the newest one that is
whole, and says which it skipped. Exit code 1 when one is torn or damaged."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="run directory, mirror, or its checkpoints folder")
    parser.add_argument("--verify", action="store_true", help="read every byte (takes as long as reading the files)")
    parser.add_argument("--json", action="store_true", help="one JSON object per checkpoint, with its files")


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from nano_ds import checkpoint

    folders = checkpoint.folders(checkpoint.root_of(args.run_dir))
    bar = tqdm(folders, "verify", unit=" checkpoints", leave=False, disable=None if args.verify else True)
    facts = [describe(folder, deep=args.verify) for folder in bar]
    if args.json:
        for one in facts:
            print(json.dumps(one))
    elif facts:
        print(table(facts))
    else:
        print(f"{args.run_dir}: no checkpoint yet")
    return 1 if any(one["state"] in ("torn", "damaged") for one in facts) else 0


def describe(folder: Path, deep: bool) -> dict[str, Any]:
    """One checkpoint folder as plain values. ``good`` names the files that are here and as they were written."""
    from nano_ds import checkpoint
    from nano_ds.errors import UserError

    health = checkpoint.inspect(folder, deep)
    try:
        state = checkpoint.read_state(folder).state
    except UserError:
        state = {}
    return {
        "path": str(folder.absolute()),
        "step": int(folder.name.removeprefix("step-")),
        "state": health.state,
        "why": health.why,
        "val_loss": state.get("progress", {}).get("val_loss"),
        "tokens": state.get("tokens"),
        "zero_stage": state.get("zero_stage"),
        "world_size": state.get("world_size"),
        "bytes": sum(size for size, _ in health.files.values()),
        "written": (folder / checkpoint.COMMIT).stat().st_mtime if health.files else None,
        "files": dict(health.files),
        "hosts": dict(health.hosts),
        "good": sorted(health.good),
    }


def table(facts: Sequence[Mapping[str, Any]]) -> str:
    """Rows for a person."""
    losses = [f["val_loss"] for f in facts if f["val_loss"] is not None]
    rows = [("step", "val loss", "size", "ZeRO", "written (UTC)", "state")]
    for f in facts:
        loss = "-" if f["val_loss"] is None else f"{f['val_loss']:.4f}" + " *" * (f["val_loss"] == min(losses))
        written = "-"
        if f["written"]:
            written = datetime.fromtimestamp(f["written"], timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
        size = f"{f['bytes'] / 1e6:,.1f} MB" if f["bytes"] else "-"
        layout = "-" if f["zero_stage"] is None else f"{f['zero_stage']} x {f['world_size']}"
        state = f["state"] + (f": {f['why']}" if f["why"] else "")
        rows.append((str(f["step"]), loss, size, layout, written, state))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ["  ".join([*(f"{c:>{w}}" for c, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]
    return "\n".join([*lines, "* lowest validation loss"] if losses else lines)

"""`nano-ds plot`."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = """\
Draw the loss curves of one or more runs into one PNG (TensorBoard is the live view).

  nano-ds plot runs/demo                      writes runs/demo/loss.png
  nano-ds plot runs/a runs/b -o compare.png

Needs matplotlib: pip install matplotlib"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="run directories")
    parser.add_argument("-o", "--out", metavar="PNG", type=Path, help="picture to write (default: FIRST_RUN/loss.png)")


def run(args: argparse.Namespace) -> int:
    import json

    from nano_ds.errors import UserError
    from nano_ds.files import atomic_write

    try:
        import matplotlib
    except ImportError:
        raise UserError("plotting needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    for run_dir in args.runs:
        log = run_dir / "log.jsonl"
        if not log.is_file():
            raise UserError(f"{log}: no such log; name run directories such as runs/demo")
        rows = []
        for number, line in enumerate(log.read_bytes().splitlines(), start=1):
            try:
                rows.append(json.loads(line))
                assert isinstance(rows[-1], dict) and "step" in rows[-1]
            except (ValueError, AssertionError):
                raise UserError(f"{log}:{number}: not a line of a training log") from None
        if not rows:
            raise UserError(f"{log}: is empty; the run has logged no step yet")
        for key, style in (("loss", "-"), ("val_loss", "o--")):
            points = [(r["step"], r[key]) for r in rows if r.get(key) is not None]
            if points:
                label = f"{run_dir.name} {'training' if key == 'loss' else 'validation'}"
                axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1.2, markersize=4)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    out = args.out or args.runs[0] / "loss.png"
    with atomic_write(out) as f:
        figure.savefig(f, format="png", dpi=130)
    print(out)
    return 0

"""Trains like launch/train.py, with a fault: `FAULT FIRST LAST` and then the options of launch/train.py.

nan, spike: the batches that an undisturbed run has at steps FIRST to LAST give a loss that is not a number, or a
hundred times too large. drift: at step FIRST the last rank changes one bit of a parameter.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nano_ds import engine, train
from nano_ds.leaving import leave
from nano_ds.stop import StopRequest
from nano_ds.train_args import config_of, parser

fault, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
args = parser("faulty").parse_args(sys.argv[4:])
config = config_of(args)
world = engine.start(config.run)
bad = False


class Loader(train.Loader):
    """Knows which batches of the stream it hands out."""

    def next_step(self) -> Any:
        global bad
        made = super().next_step()
        bad = fault != "drift" and first <= self.step <= last
        return made


class Model(train.Transformer):
    steps = 0

    def forward(self, ids: torch.Tensor, targets: torch.Tensor | None = None, **k: Any) -> Any:
        out = super().forward(ids, targets, **k)
        if self.training and targets is not None:
            Model.steps += 1
            if fault == "drift" and Model.steps == first and world.rank == world.size - 1:
                self.final_norm.weight.data.view(torch.int32)[0] ^= 1
            if bad:
                if fault == "gradient":
                    out.register_hook(lambda g: g * float("nan"))
                else:
                    out = out * (float("nan") if fault == "nan" else 100.0)
        return out


train.Loader, train.Transformer = Loader, Model  # type: ignore[misc]
try:
    code = train.train(config, args.resume, world, StopRequest())
except (RuntimeError, ValueError) as e:
    print(f"faulty: {e}", file=sys.stderr)
    code = 1
finally:
    engine.finish()
leave(code)

"""Resumes a run and writes its live parameters to a file: what the consolidated model is compared with.

python live_parameters.py OUT.safetensors <options of launch/train.py>
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import deepspeed
from safetensors.torch import save_file

from nano_ds import engine
from nano_ds.leaving import leave
from nano_ds.stop import StopRequest
from nano_ds.train import Run
from nano_ds.train_args import config_of, parser

if __name__ == "__main__":
    out = sys.argv.pop(1)
    args = parser("live").parse_args()
    config = config_of(args)
    world = engine.start(config.run)
    run = Run(config, args.resume, world, Path(config.run.dir), StopRequest(), ExitStack())
    live = dict(run.engine.model.named_parameters())
    with deepspeed.zero.GatheredParameters(list(live.values()), enabled=run.engine.stage == 3):
        if world.is_main:
            save_file({n: p.detach().clone().contiguous() for n, p in live.items()}, out)
    engine.finish()
    leave(0)

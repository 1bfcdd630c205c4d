"""`nano-ds train`."""

from __future__ import annotations

import argparse

from nano_ds.config import describe_fields
from nano_ds.train_args import add_options, config_of

HELP = f"""\
Train a model with DeepSpeed: on this machine, or over a hostfile.

  nano-ds train -c recipes/demo.yaml                                   one process per GPU (one on a CPU)
  nano-ds train -c recipes/demo.yaml train.max_steps=200 optim.lr=1e-3
  nano-ds train -c recipes/demo.yaml --processes 2 --deepspeed_config ds_configs/zero2.json
  nano-ds train -c recipes/demo.yaml --hostfile hostfiles/two_nodes

Ctrl-C (or SIGTERM) writes a checkpoint and ends; the same command goes on from it. Out of memory? Lower
train.micro_batch_size first: the result stays the same. Watch it with `tensorboard --logdir RUN_DIR`.

Recipe keys, their defaults and meaning:
{describe_fields()}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser)
    parser.add_argument("--processes", type=int, metavar="N", help="processes on this machine (default: its GPUs)")
    parser.add_argument("--hostfile", metavar="H", help="train on the machines that this file names (see hostfiles/)")


def run(args: argparse.Namespace) -> int:
    from nano_ds.ds_config import read_ds_config
    from nano_ds.errors import UserError
    from nano_ds.nodes import launcher

    if args.processes is not None and args.processes < 1:
        raise UserError(f"--processes: {args.processes} is out of range, it must be at least 1")
    # Said once here rather than by every process.
    config = config_of(args)
    read_ds_config(config.run.deepspeed_config)
    options = ["-c", args.config, "--deepspeed", "--resume", args.resume]
    if args.deepspeed_config is not None:
        options += ["--deepspeed_config", args.deepspeed_config]
    if args.mirror is not None:
        options += ["--mirror", args.mirror]
    if args.debug:
        options.append("--debug")
    command = launcher.command([*options, *args.overrides], args.processes, args.hostfile)
    if launcher.is_multiple(command):
        from nano_ds.train import check_data

        check_data(config)
    return launcher.run(command)

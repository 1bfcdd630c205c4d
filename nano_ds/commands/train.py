"""`nano-ds train`."""

from __future__ import annotations

import argparse
import os

from nano_ds.config import describe_fields
from nano_ds.train_args import add_options, config_of, passed_on

HELP = f"""\
Train a model with DeepSpeed: on this machine, or over a hostfile.

  nano-ds train -c recipes/demo.yaml                                   one process per GPU (one on a CPU)
  nano-ds train -c recipes/demo.yaml train.max_steps=200 optim.lr=1e-3
  nano-ds train -c recipes/demo.yaml --processes 2 --deepspeed_config ds_configs/zero2.json
  nano-ds train -c recipes/demo.yaml --hostfile hostfiles/two_nodes                        by pdsh and ssh
  nano-ds train -c recipes/demo.yaml --hostfile hostfiles/two_nodes --launcher openmpi
  nano-ds train -c recipes/demo.yaml --hostfile hostfiles/two_nodes --node_rank 0         no ssh: type it on each node,
                                                                     with 0 on the first, 1 on the second, and so on
  nano-ds train -c recipes/demo.yaml --hostfile hostfiles/two_nodes --restarts 5 --min_nodes 1

Ctrl-C (or SIGTERM) writes a checkpoint and ends; the same command goes on from it. A second Ctrl-C ends at once. Out of
memory? Lower train.micro_batch_size first: the result stays the same. Watch it with `tensorboard --logdir RUN_DIR`.

Before anything starts over a hostfile every node is checked (`nano-ds doctor --hostfile H -c RECIPE` shows all of it).
When a process fails, all are ended on every node, and one summary says which it was; what launchers and processes
printed is in RUN_DIR/launch.log. With --restarts the run then goes on from its newest good checkpoint by itself, with
the nodes that are left if --min_nodes allows; RUN_DIR/restarts.jsonl records each attempt.

Recipe keys, their defaults and meaning:
{describe_fields()}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser)
    parser.add_argument("--processes", type=int, metavar="N", help="processes on this machine (default: its GPUs)")
    nodes = parser.add_argument_group("several nodes")
    nodes.add_argument("--hostfile", metavar="H", help="train on the machines that this file names (see hostfiles/)")
    nodes.add_argument(
        "--launcher",
        choices=("pdsh", "openmpi"),
        help="what starts the processes on them: pdsh (default) or mpirun; both need ssh without a password",
    )
    nodes.add_argument(
        "--node_rank",
        "--node-rank",
        type=int,
        metavar="R",
        help="without ssh: start only the processes of line R (from 0) of the hostfile; give the command on every node",
    )
    nodes.add_argument(
        "--master_addr",
        "--master-addr",
        metavar="ADDRESS",
        help="address of the first node as the others see it (default: found by itself)",
    )
    nodes.add_argument(
        "--master_port",
        "--master-port",
        type=int,
        metavar="P",
        help="port there (default: a free one; 29500 with --node_rank)",
    )
    nodes.add_argument("--no_check", "--no-check", action="store_true", help="do not check the nodes before the start")
    again = parser.add_argument_group("after a failure")
    again.add_argument(
        "--restarts",
        type=int,
        default=0,
        metavar="N",
        help="start again from the newest good checkpoint; give up after N failures in a row without a new one",
    )
    again.add_argument(
        "--backoff",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="pause before the first restart; doubles up to 300 (default: 5)",
    )
    again.add_argument(
        "--min_nodes",
        "--min-nodes",
        type=int,
        metavar="M",
        help="go on with M nodes or more when others are gone (default: wait for all of them)",
    )


def run(args: argparse.Namespace) -> int:
    from nano_ds.ds_config import micro_batches, read_ds_config
    from nano_ds.nodes.launcher import place_of
    from nano_ds.nodes.supervise import Job, Policy, Supervisor, wanted_of

    _check_numbers(args)
    # Said once here rather than by every process.
    config = config_of(args)
    tree = read_ds_config(config.run.deepspeed_config)
    place = place_of(
        args.hostfile,
        processes=args.processes,
        launcher=args.launcher,
        node_rank=args.node_rank,
        master_addr=args.master_addr,
        master_port=args.master_port,
        min_nodes=args.min_nodes,
    )
    options = passed_on(args)
    if place.world == 1 and not place.hosts and not args.restarts:
        return _alone([*options, "--resume", args.resume, *args.overrides])
    micro_batches(config, place.world)
    if not place.remote:
        from nano_ds.train import check_data

        check_data(config)
    job = Job(args.config, config, place, options, args.overrides, args.resume)
    policy = Policy(args.restarts, args.backoff, args.min_nodes, not args.no_check)
    return Supervisor(job, policy, wanted_of(config, tree)).run()


def _check_numbers(args: argparse.Namespace) -> None:
    from nano_ds.errors import UserError

    for name, least in (("processes", 1), ("node_rank", 0), ("restarts", 0), ("min_nodes", 1), ("master_port", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name}: {value} is out of range, it must be at least {least}")
    if args.master_port is not None and args.master_port > 65535:
        raise UserError(f"--master_port: {args.master_port} is no TCP port, the last one is 65535")
    for name in ("backoff", "rendezvous_timeout"):
        if not 0 < getattr(args, name) < float("inf"):
            raise UserError(f"--{name}: {getattr(args, name)} is out of range, it must be above 0")


def _alone(args: list[str]) -> int:
    """One process, in the place of this one: nobody has to watch it."""
    import sys

    from nano_ds.errors import UserError
    from nano_ds.nodes.environment import DEFAULTS
    from nano_ds.nodes.launcher import SCRIPT

    if not SCRIPT.is_file():
        raise UserError(f"{SCRIPT}: not found; install from a checkout (`pip install -e .`) to train")
    os.execve(sys.executable, [sys.executable, str(SCRIPT), *args], {**DEFAULTS, **os.environ})

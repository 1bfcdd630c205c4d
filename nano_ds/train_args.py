"""The options of a training run, shared by `nano-ds train` and `launch/train.py`."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace

from nano_ds.cli import Parser
from nano_ds.config import Config, load_config


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--config", metavar="RECIPE", required=True, help="YAML recipe, e.g. recipes/demo.yaml")
    parser.add_argument("--deepspeed_config", metavar="JSON", help="ZeRO stage and offload (default: the recipe's)")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|PATH|none",
        help="auto: go on from the newest good checkpoint if there is one; PATH: from that checkpoint or run; "
        "none: only start afresh (default: auto)",
    )
    parser.add_argument(
        "--rendezvous_timeout",
        "--rendezvous-timeout",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="how long the processes wait for each other at the start (default: 120)",
    )
    parser.add_argument(
        "--mirror", metavar="DIR", help="copy every checkpoint there as well (another disk), while training goes on"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key.sub=value", help="recipe keys to change, e.g. train.max_steps=50"
    )


def passed_on(args: argparse.Namespace) -> list[str]:
    """The parsed options as arguments of ``launch/train.py``, without ``--resume`` and the overrides."""
    out = ["-c", args.config, "--deepspeed", "--rendezvous_timeout", f"{args.rendezvous_timeout:g}"]
    if args.deepspeed_config is not None:
        out += ["--deepspeed_config", args.deepspeed_config]
    if args.mirror is not None:
        out += ["--mirror", args.mirror]
    if args.debug:
        out.append("--debug")
    return out


def parser(prog: str) -> argparse.ArgumentParser:
    """The parser of ``launch/train.py``; it takes what the deepspeed launcher adds."""
    made = Parser(prog=prog, description="One process of a training run (started by a launcher).")
    add_options(made)
    made.add_argument("--deepspeed", action="store_true", help="accepted, as DeepSpeed's own scripts have it")
    made.add_argument("--local_rank", type=int, help="accepted from launchers; the environment decides")
    made.add_argument("--debug", action="store_true", help="show the Python traceback when something fails")
    return made


def config_of(args: argparse.Namespace) -> Config:
    """The resolved recipe of parsed options."""
    config = with_deepspeed_config(load_config(args.config, args.overrides), args.deepspeed_config)
    if args.mirror is not None:
        config = replace(config, run=replace(config.run, mirror=args.mirror))
    return config


def with_deepspeed_config(config: Config, path: str | None) -> Config:
    """The recipe with --deepspeed_config, where that was given."""
    return config if path is None else replace(config, run=replace(config.run, deepspeed_config=path))


def share_cores() -> None:
    """Divides the cores among the processes of this machine, unless OMP_NUM_THREADS says otherwise."""
    import torch

    local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1")))
    if "OMP_NUM_THREADS" not in os.environ and local > 1 and not torch.cuda.is_available():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // local))

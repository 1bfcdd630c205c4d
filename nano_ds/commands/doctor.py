"""`nano-ds doctor`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nano_ds.config import Config
    from nano_ds.nodes.checks import Row, Wanted
    from nano_ds.nodes.launcher import Place

HELP = """\
What this machine, or each node of a hostfile, can do; what is wrong, and how to fix it.

  nano-ds doctor                                                    this machine
  nano-ds doctor -c recipes/demo.yaml                               and whether it has what this recipe needs
  nano-ds doctor --hostfile hostfiles/two_nodes -c recipes/demo.yaml

A row is a check, a column a node. `ok`: fine. `warn`: a run would start, but look at it. `FAIL`: a run would not start;
the line below says what to do. `?`: it could not be checked on every node. Several nodes are compared with this machine
(software, recipe) and with each other (data), reached as the launcher reaches them, and measured with a real
all-reduce: the time of 8 bytes, and what each node sends per second in 64 MB. A hostfile that names this machine only
is a run on this machine, which needs no ssh.

Exit code 0 only when a run would start. Nothing is changed anywhere."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hostfile", metavar="H", help="check the machines that this file names (see hostfiles/)")
    parser.add_argument("-c", "--config", metavar="RECIPE", help="check what this recipe needs too")
    parser.add_argument("--deepspeed_config", metavar="JSON", help="ZeRO stage and offload (default: the recipe's)")
    parser.add_argument("--launcher", choices=("pdsh", "openmpi"), help="how a run would be started (default: pdsh)")
    parser.add_argument("--master_addr", "--master-addr", metavar="ADDRESS", help="address of the first node")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON on stdout")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="recipe keys to change")


def run(args: argparse.Namespace) -> int:
    from nano_ds.config import load_config
    from nano_ds.ds_config import read_ds_config
    from nano_ds.errors import UserError
    from nano_ds.nodes import checks, table
    from nano_ds.nodes.launcher import place_of
    from nano_ds.nodes.supervise import wanted_of
    from nano_ds.train_args import with_deepspeed_config

    config, wanted = None, checks.Wanted()
    if args.config is not None:
        config = with_deepspeed_config(load_config(args.config, args.overrides), args.deepspeed_config)
        wanted = wanted_of(config, read_ds_config(config.run.deepspeed_config))
    elif args.overrides or args.deepspeed_config:
        raise UserError("recipe keys and --deepspeed_config need -c RECIPE")
    # How many GPUs there are is for the probe to find out: torch may be broken here.
    alone = 1 if args.hostfile is None else None
    place = place_of(args.hostfile, processes=alone, launcher=args.launcher, master_addr=args.master_addr)
    if place.hosts:
        hosts, rows = list(place.hosts), _nodes(args.config, config, wanted, place)
    else:
        hosts, rows = _this_machine(args.config, config, wanted, place.processes if args.hostfile else None)
    bad = checks.failing(rows)
    if args.json:
        tree = [
            {**row.__dict__, "cells": dict(zip(hosts, row.cells, strict=False)), "failing": sorted(row.failing)}
            for row in rows
        ]
        print(json.dumps({"would_start": not bad, "rows": tree}, indent=1))
    else:
        print(table.text(rows, hosts))
        verdict = f"{len(bad)} of {len(rows)} checks failed: a run would not start" if bad else "a run would start"
        print(verdict, file=sys.stderr)
    return 1 if bad else 0


def _this_machine(
    recipe: str | None, config: Config | None, wanted: Wanted, processes: int | None
) -> tuple[list[str], list[Row]]:
    """``processes``: that the run would have here; None: one per GPU, or one."""
    from nano_ds.nodes import checks, survey

    request = survey.request_for(recipe, config, full=True)
    node = survey.this_machine(request, "this machine", processes or 1)
    rows = checks.judge([node], wanted)
    world = processes or max(1, len(node.facts.get("devices", ())))
    return [str(node.facts.get("host", "this machine"))], [*rows, *_batch_row(config, world)]


def _batch_row(config: Config | None, world: int) -> list[Row]:
    """What is wrong with sharing the batch by the processes, if anything is."""
    from nano_ds.ds_config import micro_batches
    from nano_ds.errors import UserError
    from nano_ds.nodes import checks

    try:
        if config is not None:
            micro_batches(config, world)
    except UserError as e:
        return [checks.Row("batch size", checks.FAIL, (), (str(e),))]
    return []


def _nodes(recipe: str | None, config: Config | None, wanted: Wanted, place: Place) -> list[Row]:
    from nano_ds.errors import UserError
    from nano_ds.nodes import allreduce, checks, launcher, supervise, survey

    rows = []
    try:
        launcher.check_launcher(place)
    except UserError as e:
        rows.append(checks.Row("launcher", checks.FAIL, (), (str(e),)))
    request = survey.request_for(recipe, config, full=True)
    nodes, judged = supervise.ask(request, place, wanted)
    rows += [*judged, *_batch_row(config, place.world)]
    if len(nodes) < 2:
        return rows
    if any(r.name in ("ssh", "packages") and r.mark == checks.FAIL for r in rows):
        return [*rows, checks.Row("all-reduce", checks.WARN, (), ("not measured: repair what failed above first",))]
    settled = supervise.settle(place, nodes)
    assert settled.master_addr is not None and settled.master_port is not None
    folder = config.run.dir if config is not None else str(Path("runs"))
    found = allreduce.measure(list(place.hosts), settled.master_addr, settled.master_port, folder)
    return [*rows, *checks.network_rows(found, list(place.hosts), settled.master_addr, config is not None)]

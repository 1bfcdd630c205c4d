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
the line below says what to do. Several nodes are compared with this machine (software, recipe) and with each other
(data), reached as the launcher reaches them, and measured with a real all-reduce: the time of 8 bytes, and what each
node sends per second in 64 MB.

Exit code 0 only when a run would start. Nothing is changed anywhere."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hostfile", metavar="H", help="check the machines that this file names (see hostfiles/)")
    parser.add_argument("-c", "--config", metavar="RECIPE", help="check what this recipe needs too")
    parser.add_argument("--deepspeed_config", metavar="JSON", help="ZeRO stage and offload (default: the recipe's)")
    parser.add_argument("--launcher", choices=("pdsh", "openmpi"), default="pdsh", help="how a run would be started")
    parser.add_argument("--master_addr", "--master-addr", metavar="ADDRESS", help="address of the first node")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON on stdout")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="recipe keys to change")


def run(args: argparse.Namespace) -> int:
    from nano_ds.config import load_config
    from nano_ds.ds_config import read_ds_config
    from nano_ds.errors import UserError
    from nano_ds.nodes import checks, table
    from nano_ds.nodes.hostfile import read_hostfile
    from nano_ds.nodes.launcher import Place
    from nano_ds.nodes.supervise import wanted_of
    from nano_ds.train_args import with_deepspeed_config

    config, wanted = None, checks.Wanted()
    if args.config is not None:
        config = with_deepspeed_config(load_config(args.config, args.overrides), args.deepspeed_config)
        wanted = wanted_of(config, read_ds_config(config.run.deepspeed_config))
    elif args.overrides or args.deepspeed_config:
        raise UserError("recipe keys and --deepspeed_config need -c RECIPE")
    if args.hostfile is None:
        hosts, rows = _this_machine(args.config, config, wanted)
    else:
        place = Place(read_hostfile(args.hostfile), launcher=args.launcher, master_addr=args.master_addr)
        hosts, rows = list(place.hosts), _nodes(args.config, config, wanted, place)
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


def _this_machine(recipe: str | None, config: Config | None, wanted: Wanted) -> tuple[list[str], list[Row]]:
    from nano_ds.nodes import checks, survey

    node = survey.this_machine(survey.request_for(recipe, config, full=True), "this machine", 1)
    return [str(node.facts.get("host", "this machine"))], checks.judge([node], wanted)


def _nodes(recipe: str | None, config: Config | None, wanted: Wanted, place: Place) -> list[Row]:
    from nano_ds.ds_config import micro_batches
    from nano_ds.errors import UserError
    from nano_ds.nodes import allreduce, checks, launcher, supervise, survey

    rows = []
    try:
        launcher.check_launcher(place)
    except UserError as e:
        rows.append(checks.Row("launcher", checks.FAIL, (), (str(e),)))
    request = survey.request_for(recipe, config, full=True)
    nodes, judged = supervise.ask(request, place, wanted)
    rows += judged
    if config is not None:
        try:
            micro_batches(config, place.world)
        except UserError as e:
            rows.append(checks.Row("batch size", checks.FAIL, (), (str(e),)))
    if len(nodes) < 2:
        return rows
    if any(r.name in ("ssh", "packages") and r.mark == checks.FAIL for r in rows):
        return [*rows, checks.Row("all-reduce", checks.WARN, (), ("not measured: repair what failed above first",))]
    settled = supervise.settle(place, nodes)
    assert settled.master_addr is not None and settled.master_port is not None
    folder = config.run.dir if config is not None else str(Path("runs"))
    found = allreduce.measure(list(place.hosts), settled.master_addr, settled.master_port, folder)
    return [*rows, *checks.network_rows(found, list(place.hosts), settled.master_addr, config is not None)]

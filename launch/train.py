"""What every process of a training run executes, under `deepspeed` or alone.

deepspeed [--hostfile H] launch/train.py -c RECIPE --deepspeed --deepspeed_config JSON [key.sub=value …]
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# Threads that spin while they wait take the cores from the other processes of this machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from nano_ds.cli import guard, one_line, take_overrides
from nano_ds.errors import PeerLost, UserError
from nano_ds.leaving import leave
from nano_ds.nodes import wire
from nano_ds.nodes.ancestors import check_hostfile
from nano_ds.nodes.environment import rank_of
from nano_ds.stop import StopRequest
from nano_ds.train_args import config_of, parser, share_cores


def main() -> int:
    stop = StopRequest()  # before the slow imports: a signal during start-up is not lost
    wire.begin(rank_of(os.environ))
    made = parser("launch/train.py")
    args, rest = made.parse_known_args()
    take_overrides(made, args, rest)

    def work() -> int:
        with ExitStack() as leaving:
            try:
                check_hostfile(stop.launchers)
                config = config_of(args)
                share_cores()
                from nano_ds import engine
                from nano_ds.train import train

                leaving.callback(engine.finish)
                world = engine.start(config.run, rendezvous=timedelta(seconds=args.rendezvous_timeout))
                return train(config, args.resume, world, stop)
            except Exception as e:
                # Said before the connections close, so that whoever watches hears the cause before its consequences.
                wire.end(2 if isinstance(e, UserError) else 1, one_line(e))
                if isinstance(e, PeerLost):
                    # DeepSpeed's launcher looks once a second and reports one process: let it see the one that died.
                    time.sleep(1.5)
                raise

    code = guard("nano-ds train", work, args.debug)
    wire.end(code)
    return code


if __name__ == "__main__":
    leave(main())

"""What every process of a training run executes, under `deepspeed` or alone.

deepspeed [--hostfile H] launch/train.py -c RECIPE --deepspeed --deepspeed_config JSON [key.sub=value …]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# Threads that spin while they wait take the cores from the other processes of this machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from nano_ds.cli import guard, take_overrides
from nano_ds.stop import StopRequest
from nano_ds.train_args import config_of, parser, share_cores


def main() -> int:
    stop = StopRequest()  # before the slow imports: a signal during start-up is not lost
    made = parser("launch/train.py")
    args, rest = made.parse_known_args()
    take_overrides(made, args, rest)

    def work() -> int:
        config = config_of(args)
        share_cores()
        from nano_ds import engine
        from nano_ds.train import train

        world = engine.start(config.run)
        try:
            return train(config, args.resume, world, stop)
        finally:
            engine.finish()

    return guard("nano-ds train", work, args.debug)


if __name__ == "__main__":
    sys.exit(main())

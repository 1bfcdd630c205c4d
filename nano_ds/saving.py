"""Writes the checkpoints of a run: all ranks together, on one disk or several, committed whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nano_ds import checkpoint
from nano_ds.collectives import World, broadcast, gather, peer_lost
from nano_ds.config import Config
from nano_ds.copies import Copies
from nano_ds.disks import Disks
from nano_ds.engine import Engine
from nano_ds.errors import RunFailure, brief
from nano_ds.files import write_json
from nano_ds.monitor import say
from nano_ds.run_dir import write_config
from nano_ds.tokenizer import Tokenizer


@dataclass(frozen=True)
class Saver:
    """What a save needs beside the state of the moment. Every rank calls every method."""

    root: Path  # the run's checkpoints
    config: Config
    world: World
    disks: Disks
    engine: Engine
    tokenizer: Tokenizer
    copies: Copies

    def save(self, step: int, state: Mapping[str, Any], best: int | None, last: bool) -> None:
        """Writes, checks and commits a checkpoint, deletes those that no rule keeps, starts the copies elsewhere.

        ``last``: none follows in this process, so its copies are worth waiting for.

        Raises:
            RunFailure: it cannot be written; older checkpoints are untouched.
        """
        tmp = checkpoint.staging(self.root, step)
        self._make_room(tmp)
        try:
            written = gather(self._write(tmp, state), self.world)  # all files are there
            known = {name: entry for rank in self.disks.members for name, entry in written[rank].items()}
            self._seal(tmp, step, known)
            gather(None, self.world)  # and sealed on every disk
            busy = self.copies.busy
            where = checkpoint.publish(self.root, step) if self.disks.leads else None
            gather(None, self.world)  # and in its place on every disk: none may lose an older one before
            if self.disks.leads:
                t = self.config.train
                checkpoint.rotate(self.root, step, t.keep_last, t.keep_every, best if t.keep_best else None, busy)
                if self.world.is_main:
                    say(f"checkpoint {where}")
        except (OSError, RuntimeError) as e:
            # At once, without asking the others: they may be waiting in a collective that this process will not reach.
            shutil.rmtree(tmp, ignore_errors=True)
            if peer_lost(e):
                raise
            raise RunFailure(
                f"{self.root}: cannot write the checkpoint of step {step}: {brief(e)}; "
                "free some space and run it again (the older ones are untouched)"
            ) from e
        if last:
            self.copies.finish()
        self.copies.start(step)

    def _write(self, tmp: Path, state: Mapping[str, Any]) -> dict[str, checkpoint.Entry]:
        """Writes this rank's files; returns the checksums that are known already."""
        written = self.engine.save(tmp)
        rng = {"cpu": torch.get_rng_state()}
        if self.world.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.world.device)
        torch.save(rng, tmp / rng_name(self.world.rank))
        # The first rank's, so that paths which differ between machines do not make the files differ.
        state, config = broadcast((dict(state), self.config), self.world)
        if self.disks.leads:
            write_json(tmp / "state.json", state)
            write_config(tmp, config)
            self.tokenizer.save(tmp / "tokenizer.json")
        return written

    def _seal(self, tmp: Path, step: int, known: Mapping[str, checkpoint.Entry]) -> None:
        """COMMIT, the same on every disk: it lists the files of all of them."""
        d = self.disks
        mine = checkpoint.checksum_share(tmp, d.members.index(d.rank), len(d.members), known)
        sums: dict[str, checkpoint.Entry] = {}
        hosts: dict[str, str] = {}
        for host, part in zip(d.names, gather(mine, self.world), strict=True):
            for name, entry in part.items():
                if sums.setdefault(name, entry) != entry:
                    raise RunFailure(f"{name} differs between {hosts[name]} and {host}; is the software the same?")
                hosts.setdefault(name, host)
        if d.leads:
            checkpoint.seal(tmp, step, sums, {} if d.shared else hosts)

    def _make_room(self, tmp: Path) -> None:
        problem = ""
        if self.disks.leads:
            checkpoint.clean(self.root)
            try:
                # fp32 weights, two moments and a copy of the parameters, shared by the disks
                count = sum(getattr(p, "ds_numel", p.numel()) for p in self.engine.trained.values())
                need = 17 * count + (1 << 20)
                share = len(self.disks.members) / self.world.size if self.engine.stage else 1
                checkpoint.need_space(self.root, int(need * share))
                tmp.mkdir(parents=True)
            except (RunFailure, OSError) as e:
                problem = str(e)
        for host, text in zip(self.disks.names, gather(problem, self.world), strict=True):
            if text:
                raise RunFailure(text if self.disks.shared else f"{host}: {text}")


def rng_name(rank: int) -> str:
    """The file of a rank's random states."""
    return f"rng-{rank:05d}.pt"

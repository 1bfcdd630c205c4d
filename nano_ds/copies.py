"""Copies of committed checkpoints, made while training goes on: to the other machines' disks, and to a mirror.

With separate disks every machine starts with the files that its own ranks wrote. Once each has all of them, the run can
go on without any one machine. One thread per disk does the copying, over a process group of its own.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

from nano_ds import checkpoint
from nano_ds.collectives import World, any_rank
from nano_ds.config import TrainConfig
from nano_ds.disks import Disks, spread
from nano_ds.errors import UserError, brief
from nano_ds.files import sync_dir
from nano_ds.monitor import say
from nano_ds.run_dir import lock


class Copies:
    """The background copies of a run. Every rank makes one; only the leader of a disk has work."""

    def __init__(self, root: Path, mirror: Path | None, keep: TrainConfig, world: World, disks: Disks):
        self.root, self.mirror, self.keep, self.world, self.disks = root, mirror, keep, world, disks
        self.wanted = mirror is not None or not disks.shared
        self._thread: threading.Thread | None = None
        self._step: int | None = None
        self.problem = ""  # of the last copy

    @property
    def busy(self) -> int | None:
        """The step that this process is copying now."""
        return self._step if self._thread is not None and self._thread.is_alive() else None

    def start(self, step: int) -> None:
        """Begins to copy a committed step, unless the last copy is still under way somewhere. Every rank calls it."""
        if not self.wanted:
            return
        if any_rank(self.busy is not None, self.world):
            if self.world.is_main:
                say(f"step {step} is not copied: the copy before it is still under way (raise train.checkpoint_every)")
            return
        if not self.disks.leads:
            return
        self._step = step
        # A daemon: when training dies, a copy is no reason to stay.
        self._thread = threading.Thread(target=self._work, args=(step,), name="copies", daemon=True)
        self._thread.start()

    def catch_up(self, step: int) -> None:
        """Copies a step that the run goes on from, where the mirror lacks it. Every rank calls it."""
        lacks = False
        if self.mirror is not None and self.world.is_main:
            lacks = bool(checkpoint.inspect(self.mirror / "checkpoints" / checkpoint.folder_name(step), deep=False).why)
        if any_rank(lacks, self.world):
            self.start(step)

    def finish(self) -> None:
        """Waits for the copy under way. Every rank calls it."""
        waiting = False
        # A little at a time: a collective that waited for a slow disk would run into its time limit.
        while any_rank(self.busy is not None, self.world):
            if self.world.is_main and not waiting:
                say(f"finishing the copy of step {self._step}")
            waiting = True
            if self._thread is not None:
                self._thread.join(2.0)

    def _work(self, step: int) -> None:
        folder = self.root / checkpoint.folder_name(step)
        try:
            health = checkpoint.inspect(folder, deep=False)
            lacking = spread(folder, health.good, health.files, self.disks)
            self.problem = ""
            if lacking:
                self.problem = f"{len(lacking)} files of step {step} did not reach this machine; is its disk full?"
                say(f"{folder}: {self.problem}")
            elif self.mirror is not None and self.world.is_main:
                self._mirror(folder, step, self.mirror / "checkpoints")
        except Exception as e:  # training goes on: the checkpoint itself is safe on its own disk
            self.problem = f"step {step} could not be copied: {brief(e)}"
            say(self.problem)

    def _mirror(self, folder: Path, step: int, root: Path) -> None:
        state = checkpoint.read_state(folder).state
        best = state["progress"]["best"].get("step") if self.keep.keep_best else None
        try:
            mirror_checkpoint(folder, root)
        except OSError as e:
            if e.errno != errno.ENOSPC:
                raise
            # Room for as many as are kept, not for one more: the oldest goes first, the newest stays.
            checkpoint.rotate(root, step, max(1, self.keep.keep_last - 1), self.keep.keep_every, best)
            mirror_checkpoint(folder, root)
        checkpoint.rotate(root, step, self.keep.keep_last, self.keep.keep_every, best)


def refuse_as_mirror(folder: Path) -> None:
    """Raises UserError when ``folder`` is a run itself, whose checkpoints a mirror would push out."""
    if any((folder / name).exists() for name in ("config.yaml", "log.jsonl", ".lock")):
        raise UserError(f"{folder}: is a run itself, not a mirror; name another folder with --mirror")


def claim_mirror(folder: Path, run_id: str, held: ExitStack) -> None:
    """Takes the mirror for this run and this process.

    Raises:
        UserError: it mirrors another run, is a run, or another process copies to it.
    """
    refuse_as_mirror(folder)
    root = folder / "checkpoints"
    for found in checkpoint.folders(root):
        try:
            theirs = checkpoint.read_state(found).state.get("run_id")
        except UserError:
            continue  # damaged
        if theirs not in (None, run_id):
            raise UserError(f"{folder}: mirrors another run; name another folder with --mirror")
    with suppress(OSError):  # one that cannot be written to is said when it is written to
        held.enter_context(lock(root, "--mirror"))


def mirror_checkpoint(folder: Path, root: Path) -> Path:
    """Copies a committed checkpoint to ``root``, checking every byte on the way; it appears there whole or not at all.

    Raises:
        OSError: it cannot be written, or the bytes read are not those that were committed.
    """
    health = checkpoint.inspect(folder, deep=False)
    if health.why:
        raise OSError(checkpoint.unusable(folder, health.why))
    root.mkdir(parents=True, exist_ok=True)
    tmp = checkpoint.staging(root, health.step)
    shutil.rmtree(tmp, ignore_errors=True)
    try:
        for name, (_, digest) in health.files.items():
            (tmp / name).parent.mkdir(parents=True, exist_ok=True)
            if _copy(folder / name, tmp / name) != digest:
                raise OSError(f"{folder / name}: its checksum differs")
        checkpoint.seal(tmp, health.step, health.files, {})
        return checkpoint.publish(root, health.step)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise


def _copy(source: Path, target: Path) -> str:
    """Copies and flushes one file; returns the SHA-256 of what was written."""
    digest = hashlib.sha256()
    with open(source, "rb") as f, open(target, "wb") as out:
        while chunk := f.read(1 << 22):
            digest.update(chunk)
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    sync_dir(target.parent)
    return digest.hexdigest()

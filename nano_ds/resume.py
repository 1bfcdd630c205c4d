"""Which checkpoint a run goes on from: the newest whole one, over all disks of the run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nano_ds import checkpoint
from nano_ds.checkpoint import Checkpoint, Health
from nano_ds.collectives import World, agree, gather
from nano_ds.copies import mirror_checkpoint, refuse_as_mirror
from nano_ds.disks import Disks, spread
from nano_ds.errors import UserError
from nano_ds.monitor import say

Check = Callable[[Checkpoint], None]  # raises UserError when the run cannot go on from it


@dataclass(frozen=True)
class Resume:
    """``--resume`` as the user gave it, and where to look. Every rank makes one and calls ``choose``."""

    how: str  # auto, none, or a path
    run_dir: Path
    mirror: Path | None
    world: World
    disks: Disks

    @property
    def root(self) -> Path:
        return self.run_dir / "checkpoints"

    def choose(self, check: Check) -> Checkpoint | None:
        """The checkpoint to start from, whole on every disk; None for a new run.

        Raises:
            UserError: what was asked for is not there, is damaged, or is another run's.
        """
        self._on_disks(self._prepare)
        if self.how not in ("auto", "none"):
            found: Checkpoint | None = self._named(Path(self.how))
        else:
            damaged: list[str] = []  # of the mirror; the first rank looks
            if self.how == "auto":
                self._on_main(lambda: damaged.extend(self._take_from_mirror(check)))
            found, skipped = self._newest(self.root)
            if found is None and skipped:
                raise UserError(f"{self.root}: none of its checkpoints can be used; choose another run.dir")
            if found is None:
                self._on_main(lambda: self._refuse(damaged))
            if found is not None and self.how == "none":
                raise UserError(
                    f"{self.run_dir}: holds checkpoints up to step {found.step}, and --resume none would lose them; "
                    "choose another run.dir, or delete this one yourself"
                )
        if found is not None:
            self._on_main(lambda: check(found))
        return found

    def _prepare(self) -> None:
        if not self.how:
            raise UserError("--resume: is empty; use auto, none or a path")
        self.root.mkdir(parents=True, exist_ok=True)
        checkpoint.clean(self.root)
        checkpoint.clean_copies(self.root)

    def _named(self, where: Path) -> Checkpoint:
        """The checkpoint or run that the user named."""
        single = where.name.startswith("step-")
        root = where.parent if single else where if where.name == "checkpoints" else where / "checkpoints"
        if not any(gather(root.is_dir(), self.world)):
            raise UserError(f"--resume {where}: neither a run (no checkpoints folder in it) nor a checkpoint (step-…)")
        only = where.name if single else ""
        found, skipped = self._newest(root, only)
        if found is None:
            raise UserError(skipped[0] if skipped else f"--resume {where}: no such checkpoint")
        here = max((s for steps in gather(checkpoint.steps(self.root), self.world) for s in steps), default=None)
        ours = root.resolve() == self.root.resolve()
        if here is not None and not (ours and found.step == here):
            raise UserError(
                f"--resume {where}: {self.run_dir} holds other checkpoints, up to step {here}, and the new "
                "branch would mix with them; give it a run.dir of its own"
            )
        return found

    def _newest(self, root: Path, only: str = "") -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint in ``root`` that is whole when all disks are taken together, and what was skipped."""
        names = {f.name for f in checkpoint.folders(root)} if self.disks.leads else set()
        every = {n for part in gather(names, self.world) for n in part if not only or n == only}
        skipped: list[str] = []
        for name in sorted(every, key=lambda n: int(n.removeprefix("step-")), reverse=True):
            folder = root / name
            why = self._make_whole(folder)
            if not why:
                try:
                    return checkpoint.read_state(folder), skipped
                except UserError as e:
                    why = str(e)
            line = f"skipped {checkpoint.unusable(folder, why)}"
            skipped.append(line)
            if self.world.is_main and not only:
                say(line)
        return None, skipped

    def _make_whole(self, folder: Path) -> str:
        """Checks every byte on every disk and fetches what a disk lacks. Returns why it cannot be used, or ''."""
        health = checkpoint.inspect(folder) if self.disks.leads else Health()
        every = gather(health, self.world)
        leaders = self.disks.leaders
        committed, why = whole({self.disks.names[r]: every[r] for r in leaders})
        if committed is None or self.disks.shared:
            return why
        trouble = self._fetch(folder, health, committed) if self.disks.leads else ""
        texts = [f"{host}: {t}" for host, t in zip(self.disks.names, gather(trouble, self.world), strict=True) if t]
        return "; ".join(texts)

    def _fetch(self, folder: Path, health: Health, committed: Health) -> str:
        """Brings what this disk lacks from the others; the leaders call it together."""
        target = folder if health.files else checkpoint.staging(folder.parent, committed.step)
        lacking = spread(target, health.good, committed.files, self.disks)
        if lacking:
            return f"{lacking[0]} did not arrive (is the disk full?)"
        if target != folder:
            checkpoint.seal(target, committed.step, committed.files, committed.hosts)
            checkpoint.publish(folder.parent, committed.step)
        return ""

    def _take_from_mirror(self, check: Check) -> list[str]:
        """Brings the mirror's newest checkpoint back when this run has lost its own; returns what it had to skip."""
        if self.mirror is None:
            return []
        refuse_as_mirror(self.mirror)
        theirs, skipped = checkpoint.newest(self.mirror / "checkpoints")
        for line in skipped:
            say(f"skipped {line}")
        if theirs is None:
            return skipped
        ours, _ = checkpoint.newest(self.root)
        if ours is not None and ours.state.get("run_id") != theirs.state.get("run_id"):
            raise UserError(f"{self.mirror}: mirrors another run; name another folder with --mirror")
        if ours is None or ours.step < theirs.step:
            check(theirs)
            say(f"takes step {theirs.step} back from the mirror {self.mirror}")
            mirror_checkpoint(theirs.path, self.root)
        return skipped

    def _refuse(self, damaged: list[str]) -> None:
        """A new run would take the place of what is left of a lost one."""
        if damaged:
            raise UserError(
                f"{self.mirror}: none of the checkpoints that it mirrors can be used ({damaged[0]}); look at them with "
                "`nano-ds checkpoints`, or name another folder with --mirror to start afresh"
            )

    def _on_main(self, work: Callable[[], None]) -> None:
        agree(work, self.world, here=self.world.is_main)

    def _on_disks(self, work: Callable[[], None]) -> None:
        agree(work, self.world, here=self.disks.leads)


def whole(disks: Mapping[str, Health]) -> tuple[Health | None, str]:
    """What was committed, judged by the health of one checkpoint on every disk (by host); None and why when it is lost.

    All disks must know the same COMMIT, and every file must be good on one of them.
    """
    trusted = {host: h for host, h in disks.items() if h.files}
    if not trusted:
        problems = {host: h.problem for host, h in disks.items()}
        return None, next((p for p in problems.values() if "never" not in p), next(iter(problems.values())))
    (first, committed), *others = trusted.items()
    for host, health in others:
        if health.files != committed.files or health.step != committed.step:
            return None, f"its COMMIT differs between {first} and {host}"
    good = frozenset().union(*(h.good for h in trusted.values()))
    for name in committed.files:
        if name not in good:
            wrong = next((h.damaged[name] for h in trusted.values() if name in h.damaged), f"{name} is missing")
            writer = f" ({committed.hosts[name]} wrote it)" if name in committed.hosts else ""
            return None, wrong + writer
    return committed, ""


def resumed_seed(seed: int, step: int, rank: int) -> int:
    """The random seed of a rank that goes on from ``step`` in a run whose number of processes changed.

    The saved random states belong to the ranks that wrote them, so dropout draws other numbers than it would have
    drawn, but the same ones whenever the same step is resumed with the same ranks.
    """
    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1

"""Checkpoints as folders that are whole or not there: written beside, verified, renamed, with COMMIT as the last file.

    run/checkpoints/step-00000200/
        zero/…            DeepSpeed's shards, one or more files per rank
        rng-00000.pt …    random states of each rank
        state.json        counters and facts of the run
        config.yaml       the resolved recipe
        tokenizer.json    the vocabulary of the run
        COMMIT            sizes and checksums of all the others; written last

Nothing here knows torch or DeepSpeed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from nano_ds.errors import RunFailure, UserError, brief
from nano_ds.files import sha256_file, sync_dir, sync_file, write_json

COMMIT = "COMMIT"
FORMAT = "nano_ds.checkpoint"
Entry = tuple[int, str]  # size and SHA-256 of a file
_NAME = re.compile(r"step-([0-9]{8,})")
_STAGING = re.compile(r"\.step-([0-9]{8,})\.tmp")


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: its folder, its step, what ``state.json`` says."""

    path: Path
    step: int
    state: dict[str, Any]


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def staging(root: Path, step: int) -> Path:
    """Where the files of a checkpoint are written before it is committed."""
    return root / f".{folder_name(step)}.tmp"


def checksum_share(
    folder: Path, part: int, parts: int, known: Mapping[str, Entry] = MappingProxyType({})
) -> dict[str, Entry]:
    """Sizes and SHA-256 of every ``parts``-th file from ``part`` on, all of them flushed to the disk.

    ``known``: entries by name that were computed when the files were written.
    """
    paths = _files(folder)[part::parts]
    names = [path.relative_to(folder).as_posix() for path in paths]

    def entry(name: str, path: Path) -> Entry:
        return known.get(name) or (path.stat().st_size, sha256_file(path))

    # Reading back what is still in memory costs the processor, flushing costs the disk: both at once.
    with ThreadPoolExecutor(4) as pool:
        flushed = [pool.submit(sync_file, path) for path in paths]
        entries = dict(zip(names, pool.map(entry, names, paths), strict=True))
        for one in flushed:
            one.result()
    return entries


def seal(folder: Path, step: int, sums: Mapping[str, Entry], hosts: Mapping[str, str]) -> None:
    """Writes COMMIT into a staging folder. ``hosts``: who wrote a file, where the disks are separate."""
    tree = {"format": FORMAT, "version": 1, "step": step, "files": dict(sorted(sums.items()))}
    write_json(folder / COMMIT, {**tree, "hosts": dict(sorted(hosts.items()))} if hosts else tree)
    for inner in (p for p in folder.rglob("*") if p.is_dir()):
        sync_dir(inner)
    sync_dir(folder)


def publish(root: Path, step: int) -> Path:
    """Renames a sealed staging folder to its place; replaces a checkpoint of the same step."""
    final = root / folder_name(step)
    if final.exists():
        _remove(final)
    os.rename(staging(root, step), final)
    sync_dir(root)
    with open(root / "latest.tmp", "w", encoding="utf-8") as f:
        f.write(final.name + "\n")
    os.replace(root / "latest.tmp", root / "latest")
    return final


@dataclass(frozen=True)
class Health:
    """What one folder holds of a checkpoint."""

    step: int = 0
    files: Mapping[str, Entry] = field(
        default_factory=dict
    )  # as COMMIT has them; empty when there is no COMMIT to trust
    hosts: Mapping[str, str] = field(default_factory=dict)  # who wrote a file, where the disks are separate
    problem: str = ""  # why COMMIT itself cannot be trusted
    good: frozenset[str] = frozenset()
    missing: tuple[str, ...] = ()
    damaged: Mapping[str, str] = field(default_factory=dict)  # name: why

    @property
    def why(self) -> str:
        """Why the folder alone is no usable checkpoint, or an empty string."""
        if self.problem or self.damaged:
            return self.problem or next(iter(self.damaged.values()))
        if not self.missing:
            return ""
        elsewhere = sorted({self.hosts[n] for n in self.missing if n in self.hosts})
        if elsewhere:
            return f"{len(self.missing)} of its {len(self.files)} files are not here but on {', '.join(elsewhere)}"
        return f"{self.missing[0]} is missing"

    @property
    def state(self) -> str:
        """committed, torn (never finished, or files are gone), damaged, or apart (files are on other machines)."""
        if not self.why:
            return "committed"
        if self.damaged or "damaged" in self.problem:
            return "damaged"
        return "apart" if self.missing and all(n in self.hosts for n in self.missing) else "torn"


def inspect(folder: Path, deep: bool = True) -> Health:
    """Compares a folder with its COMMIT; ``deep`` reads every byte."""
    try:
        tree = json.loads((folder / COMMIT).read_text(encoding="utf-8"))
        if tree["format"] != FORMAT or tree["version"] != 1:
            return Health(problem="its COMMIT file is of another kind or version")
        step = _count(tree["step"])
        files = {inside(n): (_count(size), str(digest)) for n, (size, digest) in tree["files"].items()}
        hosts = {inside(n): str(host) for n, host in tree.get("hosts", {}).items()}
        if (
            not files
            or "state.json" not in files
            or (_NAME.fullmatch(folder.name) and folder.name != folder_name(step))
        ):
            return Health(problem="its COMMIT file is damaged")
    except FileNotFoundError:
        return Health(problem="it was never committed")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Health(problem="its COMMIT file is damaged")
    good, missing, damaged = set(), [], {}
    for name, (size, digest) in files.items():
        try:
            path = folder / name
            found = path.stat().st_size
            if found != size:
                damaged[name] = f"{name} has {found} bytes instead of {size}"
            elif deep and sha256_file(path) != digest:
                damaged[name] = f"{name} is damaged (its checksum differs)"
            else:
                good.add(name)
        except FileNotFoundError:
            missing.append(name)
        except OSError as e:
            damaged[name] = f"{name} cannot be read ({e.strerror})"
    return Health(step, files, hosts, "", frozenset(good), tuple(missing), damaged)


def inside(name: str) -> str:
    """A file name of COMMIT; raises ValueError when it points out of the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise ValueError(f"{name!r} is no name inside a checkpoint")
    os.fsencode(name)  # a ValueError for what no file can be called
    return name


def _count(value: object) -> int:
    """A step or a size as JSON has it; raises ValueError for anything else (1e999 is infinity, true is 1)."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def open_checkpoint(folder: Path, deep: bool = True) -> Checkpoint:
    """Verifies one checkpoint folder; raises UserError saying why it cannot be used."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such checkpoint")
    why = inspect(folder, deep).why
    if why:
        raise UserError(f"{unusable(folder, why)}; use an older one")
    return read_state(folder)


def unusable(folder: Path, why: str) -> str:
    return f"{folder}: this checkpoint cannot be used: {why}"


def read_state(folder: Path) -> Checkpoint:
    """A verified folder and what its state.json says; raises UserError when that makes no sense."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if not isinstance(state, dict) or not isinstance(state.get("progress", {}), dict):
            raise ValueError("it does not hold the state of a run")
        return Checkpoint(folder, _count(state["step"]), state)
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(unusable(folder, f"state.json is unreadable ({brief(e)})")) from None
    except KeyError as e:
        raise UserError(unusable(folder, f"state.json is unreadable (it has no {e})")) from None


def newest(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and a line for each newer one that was skipped and why."""
    skipped: list[str] = []
    for path in reversed(folders(root)):
        try:
            return open_checkpoint(path), skipped
        except UserError as e:
            skipped.append(str(e))
    return None, skipped


def root_of(run: Path) -> Path:
    """The checkpoints of a run; raises UserError when ``run`` is none."""
    root = run if run.absolute().name == "checkpoints" else run / "checkpoints"
    if not root.is_dir():
        raise UserError(f"{run}: neither a run (no checkpoints folder in it) nor a checkpoint (step-…)")
    return root


def find(where: Path) -> Checkpoint:
    """The checkpoint at ``where``: a checkpoint folder, or the newest good one of a run.

    Raises:
        UserError: there is none, or the one named cannot be used.
    """
    if is_checkpoint(where):
        return open_checkpoint(where)
    found, skipped = newest(root_of(where))
    if found is None:
        detail = f": {skipped[0]}" if skipped else ""
        raise UserError(f"{where}: no usable checkpoint in this run{detail}")
    for line in skipped:
        print(f"skipped {line}", file=sys.stderr)
    return found


def clean(root: Path) -> None:
    """Removes what an interrupted save or rotation left."""
    for path in root.glob(".step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
    for path in root.glob(".seen-*"):
        path.unlink(missing_ok=True)


def clean_copies(root: Path) -> None:
    """Removes files that an interrupted copy left inside checkpoints; not while one is under way."""
    for folder in folders(root):
        for path in folder.rglob(".*.tmp"):
            path.unlink(missing_ok=True)


def folders(root: Path) -> list[Path]:
    """The checkpoint folders in ``root``, good or not, in the order of their steps."""
    found = [p for p in root.iterdir() if p.is_dir() and _NAME.fullmatch(p.name)] if root.is_dir() else []
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is named as a committed checkpoint is."""
    return bool(_NAME.fullmatch(folder.absolute().name))


def unfinished(root: Path) -> dict[Path, int]:
    """The staging folders in ``root`` and their steps: saves under way, or ones that never came to their end."""
    found = {p: _STAGING.fullmatch(p.name) for p in sorted(root.glob(".step-*.tmp"))}
    return {p: int(match[1]) for p, match in found.items() if match and p.is_dir()}


def steps(root: Path) -> list[int]:
    """The steps of the checkpoint folders in ``root``, good or not."""
    return [int(p.name.removeprefix("step-")) for p in folders(root)]


def rotate(
    root: Path, current: int, keep_last: int, keep_every: int, best: int | None, busy: int | None = None
) -> list[int]:
    """Deletes checkpoints that no rule keeps: newest ``keep_last``, multiples of ``keep_every``, step ``best``.

    ``busy``, the step that is being copied elsewhere, stays. So do steps beyond ``current``, the one just committed:
    they are damaged ones that the run stepped back from, and must not push a good one out. Returns the deleted steps.
    """
    there = [s for s in steps(root) if s <= current]
    keep = set(there[-keep_last:]) | {s for s in there if keep_every and s % keep_every == 0}
    keep |= {s for s in (best, busy) if s is not None}
    gone = []
    for step in there:
        if step not in keep:
            _remove(root / folder_name(step))
            gone.append(step)
    return gone


def need_space(root: Path, size: int) -> None:
    """Raises RunFailure when ``size`` more bytes would not fit on the disk of ``root``."""
    free = shutil.disk_usage(root).free
    if free < size:
        raise RunFailure(
            f"{root}: the next checkpoint needs {size / 1e6:,.1f} MB and the disk has {free / 1e6:,.1f} MB free; "
            "free some space and run it again (it goes on from the last checkpoint)"
        )


def _remove(path: Path) -> None:
    # Renamed first: a half-deleted folder must not look like a checkpoint.
    doomed = path.with_name(f".{path.name}.old.tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(path, doomed)
    shutil.rmtree(doomed)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != COMMIT)

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nano_ds.errors import RunFailure, UserError
from nano_ds.files import sha256_file, sync_dir, sync_file, write_json

COMMIT = "COMMIT"
FORMAT = "nano_ds.checkpoint"
_NAME = re.compile(r"step-(\d{8,})")


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


def checksum_share(folder: Path, part: int, parts: int) -> dict[str, list[Any]]:
    """Sizes and SHA-256 of every ``parts``-th file from ``part`` on, each flushed to the disk first."""
    sums: dict[str, list[Any]] = {}
    for path in _files(folder)[part::parts]:
        sync_file(path)
        sums[path.relative_to(folder).as_posix()] = [path.stat().st_size, sha256_file(path)]
    return sums


def commit(root: Path, step: int, sums: dict[str, list[Any]]) -> Path:
    """Writes COMMIT into the staging folder and renames it to its place; replaces a checkpoint of the same step."""
    tmp, final = staging(root, step), root / folder_name(step)
    write_json(tmp / COMMIT, {"format": FORMAT, "version": 1, "step": step, "files": sums})
    for folder in (p for p in tmp.rglob("*") if p.is_dir()):
        sync_dir(folder)
    if final.exists():
        _remove(final)
    os.rename(tmp, final)
    sync_dir(root)
    with open(root / "latest.tmp", "w", encoding="utf-8") as f:
        f.write(final.name + "\n")
    os.replace(root / "latest.tmp", root / "latest")
    return final


def verify(folder: Path, deep: bool = True) -> str:
    """Why the checkpoint cannot be trusted, or an empty string. ``deep`` reads every byte."""
    try:
        tree = json.loads((folder / COMMIT).read_text(encoding="utf-8"))
        files = tree["files"]
        if tree["format"] != FORMAT or tree["version"] != 1 or not files:
            return "its COMMIT file is of another kind or version"
    except FileNotFoundError:
        return "it was never committed"
    except (OSError, ValueError, KeyError, TypeError):
        return "its COMMIT file is damaged"
    for name, entry in files.items():
        try:
            size, digest = entry
            path = folder / name
            found = path.stat().st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
            if deep and sha256_file(path) != digest:
                return f"{name} is damaged (its checksum differs)"
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, ValueError, TypeError) as e:
            return f"{name} cannot be read ({e})"
    return ""


def open_checkpoint(folder: Path, deep: bool = True) -> Checkpoint:
    """Verifies one checkpoint folder; raises UserError saying why it cannot be used."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such checkpoint")
    why = verify(folder, deep)
    if why:
        raise UserError(f"{folder}: this checkpoint cannot be used: {why}; resume from an older one")
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return Checkpoint(folder, int(state["step"]), state)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{folder}: this checkpoint cannot be used: state.json is unreadable ({e})") from None


def newest(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and a line for each newer one that was skipped and why."""
    skipped: list[str] = []
    for path in reversed(_folders(root)):
        try:
            return open_checkpoint(path), skipped
        except UserError as e:
            skipped.append(str(e))
    return None, skipped


def find(where: Path) -> Checkpoint:
    """The checkpoint at ``where``: a checkpoint folder, or the newest good one of a run.

    Raises:
        UserError: there is none, or the one named cannot be used.
    """
    if _NAME.fullmatch(where.name):
        return open_checkpoint(where)
    root = where if where.name == "checkpoints" else where / "checkpoints"
    if not root.is_dir():
        raise UserError(f"{where}: neither a run (no checkpoints folder in it) nor a checkpoint (step-…)")
    found, skipped = newest(root)
    if found is None:
        detail = f": {skipped[0]}" if skipped else ""
        raise UserError(f"{where}: no usable checkpoint in this run{detail}")
    return found


def clean(root: Path) -> None:
    """Removes what an interrupted save or rotation left."""
    for path in root.glob(".step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def steps(root: Path) -> list[int]:
    """The steps of the checkpoint folders in ``root``, good or not."""
    return [int(p.name.removeprefix("step-")) for p in _folders(root)]


def rotate(root: Path, current: int, keep_last: int, keep_every: int, best: int | None) -> list[int]:
    """Deletes checkpoints that no rule keeps: newest ``keep_last``, multiples of ``keep_every``, step ``best``.

    Steps beyond ``current``, the one just committed, are damaged ones that the run stepped back from: they stay, and do
    not push a good one out. Returns the steps that were deleted.
    """
    there = [s for s in steps(root) if s <= current]
    keep = set(there[-keep_last:]) | {s for s in there if keep_every and s % keep_every == 0}
    if best is not None:
        keep.add(best)
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


def _folders(root: Path) -> list[Path]:
    found = [p for p in root.iterdir() if p.is_dir() and _NAME.fullmatch(p.name)] if root.is_dir() else []
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != COMMIT)

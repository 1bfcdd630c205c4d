"""The plain `deepspeed` launcher above a training process: its death asks for a checkpoint, its mistakes are said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil

from nano_ds.errors import UserError


def launchers() -> list[psutil.Process]:
    """The processes of DeepSpeed's launcher that this one descends from, nearest first."""
    try:
        return [p for p in psutil.Process().parents() if _launches(_words(p))]
    except psutil.Error:
        return []


def one_is_gone(above: Sequence[psutil.Process]) -> bool:
    """Whether one of them has ended, which leaves nobody to end this process."""
    return any(not _lives(p) for p in above) or (bool(above) and _adopted(above[-1]))


def check_hostfile(above: Sequence[psutil.Process]) -> None:
    """Raises UserError when a launcher was given a hostfile that is not there, of which it would only warn."""
    for process in above:
        words = _words(process)
        for i, word in enumerate(words):
            option, _, value = word.partition("=")
            if option not in ("-H", "--hostfile"):
                continue
            value = value or next(iter(words[i + 1 :]), "")
            try:
                missing = bool(value) and not (Path(process.cwd()) / value).exists()
            except (psutil.Error, OSError):
                continue
            if missing:
                raise UserError(
                    f"{value}: no such hostfile; write lines like `node1 slots=2` (see hostfiles/). DeepSpeed only "
                    "warns of it and trains on this machine alone"
                )


def _adopted(top: psutil.Process) -> bool:
    """Whether the topmost launcher was itself started by one that had ended before this process could see it."""
    try:
        return top.pid != 1 and top.ppid() == 1
    except psutil.Error:
        return True


def _launches(words: Sequence[str]) -> bool:
    """`python …/bin/deepspeed …`, `python -m deepspeed.launcher.…`"""
    return any(w.startswith("deepspeed.launcher.") or Path(w).name == "deepspeed" for w in words[:5])


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False

"""Checkpoints whose files lie on several machines: found and fetched over ssh, checked on arrival."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nano_ds import checkpoint
from nano_ds.checkpoint import Checkpoint, Health
from nano_ds.errors import RunFailure, UserError
from nano_ds.files import sha256_file
from nano_ds.monitor import say
from nano_ds.nodes import ssh
from nano_ds.resume import whole


@contextmanager
def collected(where: Path, hosts: Sequence[str], beside: Path) -> Iterator[Checkpoint]:
    """The newest checkpoint of ``where`` that ``hosts`` hold together, for as long as the block lasts.

    ``where`` is a run or a checkpoint at the same place on every host. Files that this machine lacks are fetched into a
    temporary folder beside ``beside``; the run itself is only read. Files of different saves are never mixed.

    Raises:
        UserError: the hosts hold no whole checkpoint.
        RunFailure: no host can be asked.
    """
    single = where.name.startswith("step-")
    root = (where.parent if single else where if where.name == "checkpoints" else where / "checkpoints").absolute()
    found = _ask(root, hosts)
    names = sorted({n for there in found.values() for n in there}, reverse=True)
    if single:
        names = [n for n in names if n == where.name]
    skipped: list[str] = []
    with _scratch(beside) as scratch:
        for name in names:
            healths = {host: there[name] for host, there in found.items() if name in there}
            committed, why = whole(healths)
            if committed is not None:
                why = _bring(root / name, scratch / name, committed, healths)
                if not why:
                    yield checkpoint.open_checkpoint(scratch / name)
                    return
            skipped.append(checkpoint.unusable(root / name, why))
            say(f"skipped {skipped[-1]}")
        raise UserError(f"{where}: no whole checkpoint on {', '.join(found)}" + (f": {skipped[0]}" if skipped else ""))


def _ask(root: Path, hosts: Sequence[str]) -> dict[str, dict[str, Health]]:
    """What each host that answers has of each checkpoint: {host: {folder name: health}}."""

    def ask(host: str) -> dict[str, Health]:
        done = ssh.run(host, ssh.python("-m", "nano_ds", "checkpoints", str(root), "--json"), timeout=120)
        try:
            listed = [json.loads(line) for line in done.stdout.splitlines()]
            return dict(_parse(tree) for tree in listed if checkpoint.is_checkpoint(Path(tree["path"])))
        except (ValueError, KeyError, TypeError, AttributeError):
            return {}
        finally:
            if done.returncode not in (0, 1):
                said = (done.stderr.strip().splitlines() or ["no answer"])[-1]
                say(f"{host}: {said}")

    with ThreadPoolExecutor(len(hosts)) as pool:
        answers = dict(zip(hosts, pool.map(ask, hosts), strict=True))
    found = {host: there for host, there in answers.items() if there}
    if not found:
        raise UserError(f"{root}: no checkpoint of this run on {', '.join(hosts)}")
    return found


def _parse(tree: Mapping[str, Any]) -> tuple[str, Health]:
    files = {checkpoint.inside(n): (int(size), str(digest)) for n, (size, digest) in tree["files"].items()}
    hosts = {checkpoint.inside(n): str(host) for n, host in tree["hosts"].items()}
    good = frozenset(tree["good"])
    problem = "" if files else str(tree["why"])
    missing = tuple(n for n in files if n not in good)
    step = int(tree["step"])
    return checkpoint.folder_name(step), Health(step, files, hosts, problem, good, missing)


def _bring(source: Path, target: Path, committed: Health, healths: Mapping[str, Health]) -> str:
    """Lays every file of a checkpoint into ``target``: links to those here, copies of the others. '' or why not."""
    here = checkpoint.inspect(source)
    away = sum(size for n, (size, _) in committed.files.items() if n not in here.good or here.files != committed.files)
    bar = tqdm(total=away, desc="fetch", unit="B", unit_scale=True, leave=False, disable=None)
    for name, (size, digest) in committed.files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if name in here.good and here.files == committed.files:
            (target / name).symlink_to(source / name)
            continue
        owners = [host for host, h in healths.items() if name in h.good]
        why = f"{name} is damaged (its checksum differs) on {', '.join(owners)}"
        for host in owners:
            try:
                ssh.fetch(host, source / name, target / name)
            except RunFailure as e:
                why = str(e)
                continue
            if sha256_file(target / name) == digest:
                break
        else:
            return why
        bar.update(size)
    bar.close()
    checkpoint.seal(target, committed.step, committed.files, committed.hosts)
    return ""


@contextmanager
def _scratch(beside: Path) -> Iterator[Path]:
    folder = beside.absolute().with_name(f".{beside.name}.{secrets.token_hex(4)}.shards.tmp")
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

"""The environment of the training processes: what launchers give them, and what `nano-ds train` sends along."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from nano_ds.errors import UserError

# Variables that decide how a process trains; where the user has set them, every node gets them. DeepSpeed itself
# forwards PYTHON*, UCX* and, on GPUs, NCCL*.
FORWARDED = (
    "OMP_",
    "GOMP_",
    "MKL_",
    "KMP_",
    "TORCH",
    "DS_",
    "DEEPSPEED_",
    "GLOO_",
    "NCCL_",
    "NANO_DS_",
    "CUDA_LAUNCH_BLOCKING",
)
# Names a file here.
KEPT_HERE = ("DS_ENV_FILE",)
DEFAULTS = {"OMP_WAIT_POLICY": "passive", "DS_SKIP_CUDA_CHECK": "1"}
_MPI = {
    "RANK": "OMPI_COMM_WORLD_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
    "LOCAL_SIZE": "OMPI_COMM_WORLD_LOCAL_SIZE",
}


def adopt_launcher(env: MutableMapping[str, str]) -> None:
    """Fills RANK, WORLD_SIZE and the like from Open MPI's names, or for one process alone.

    Raises:
        UserError: there are several processes and nobody says where they meet.
    """
    if "RANK" not in env and _MPI["RANK"] in env:
        for name, mpi in _MPI.items():
            if mpi in env:
                env.setdefault(name, env[mpi])
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
        env.setdefault(name, value)
    if int(env["WORLD_SIZE"]) == 1:
        env.setdefault("MASTER_ADDR", "127.0.0.1")
    elif "MASTER_ADDR" not in env:
        raise UserError(
            "MASTER_ADDR is not set, so the processes do not know where to meet; start with "
            "`nano-ds train --hostfile H --launcher openmpi`, or put MASTER_ADDR=ADDRESS into .deepspeed_env"
        )


def rank_of(env: Mapping[str, str]) -> int:
    """This process's number, before anything has been adopted."""
    return int(env.get("RANK", env.get(_MPI["RANK"], "0")))


def for_nodes(env: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """What goes into the run's .deepspeed_env: the user's own files first, then their shell, then ``more``."""
    out = dict(DEFAULTS)
    for folder in (Path.home(), Path.cwd()):
        out |= read_env_file(folder / env.get("DS_ENV_FILE", ".deepspeed_env"))
    out |= {k: v for k, v in env.items() if k.startswith(FORWARDED) and k not in KEPT_HERE}
    return {**out, **more}


def read_env_file(path: Path) -> dict[str, str]:
    """A .deepspeed_env of the user; blank and comment lines, which DeepSpeed chokes on, are passed over."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.lstrip().startswith("#"))
    return {name.strip(): value.strip() for name, value in pairs}


def write_env_file(path: Path, values: Mapping[str, str]) -> None:
    """As DeepSpeed reads it: NAME=VALUE and nothing else."""
    lines = [f"{k}={v}\n" for k, v in values.items() if "\n" not in v]
    with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as f:
        f.writelines(lines)

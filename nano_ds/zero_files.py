"""The files of a DeepSpeed checkpoint: written with their checksums, read without DeepSpeed and without running code
from them."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from nano_ds.errors import RunFailure, brief
from nano_ds.files import HashedFile
from nano_ds.restricted import Refused, load_restricted


class SideWriter:
    """Writes what DeepSpeed hands over, all files at the same time, hashed on the way and flushed to the disk.

    The tensors must not change until ``written`` has returned. A context manager.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._pool = ThreadPoolExecutor(4)
        self._files: dict[str, Future[tuple[int, str]]] = {}

    def __enter__(self) -> SideWriter:
        # torch's own CRC of each tensor, a fifth of the time, says less than the SHA-256.
        self._crc = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(False)
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown()
        torch.serialization.set_crc32_options(self._crc)

    def save(self, state_dict: object, path: str | Path) -> None:
        """What ``torch.save`` does, begun here and ended by ``written``."""
        self._files[Path(path).relative_to(self.folder).as_posix()] = self._pool.submit(_save, state_dict, path)

    def written(self) -> dict[str, tuple[int, str]]:
        """Size and SHA-256 of each file, by its name inside ``folder``, when all are on the disk."""
        return {name: file.result() for name, file in self._files.items()}


def _save(state: object, path: str | Path) -> tuple[int, str]:
    with HashedFile(path) as file:
        torch.save(state, file)  # type: ignore[arg-type] # it only asks for write and flush
    return file.entry


# Everything beyond tensors and plain containers that the restricted unpickler may build.
_INERT = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)


def load_file(path: Path) -> dict[str, Any]:
    """The contents of one file, its tensors memory-mapped; raises RunFailure naming it when it cannot be read."""
    try:
        tree = load_restricted(path, _INERT)
    except (Refused, OSError) as e:
        raise RunFailure(f"{path}: cannot read this shard: {brief(e)}") from None
    if not isinstance(tree, dict):
        raise RunFailure(f"{path}: this is no shard of a checkpoint")
    return tree


def model_file(folder: Path, stage: int) -> Path:
    """The file with the facts of the whole model (at stage 3 every rank writes one; the first is as good as any)."""
    return folder / f"{'zero_pp_rank_0_' if stage == 3 else ''}mp_rank_00_model_states.pt"


def optimizer_file(folder: Path, rank: int, world_size: int) -> Path:
    """The file with a rank's part of masters and moments (stages 1 to 3); raises RunFailure when it is missing."""
    path = folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
    if not path.is_file():
        # In bf16 it has another prefix.
        path = folder / f"bf16_{path.name}"
    if not path.is_file():
        raise RunFailure(f"{path}: this shard is missing; {world_size} processes wrote one each")
    return path

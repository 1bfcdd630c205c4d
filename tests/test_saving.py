"""The order of a save: no checkpoint is deleted before all disks have the new one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from bin_helpers import small_config

from nano_ds import checkpoint, saving
from nano_ds.collectives import World
from nano_ds.config import Config, TrainConfig
from nano_ds.disks import Disks
from nano_ds.errors import RunFailure
from nano_ds.saving import Saver


class StubEngine:
    """Saves one file instead of a DeepSpeed checkpoint."""

    stage = 1
    trained: ClassVar[dict[str, Any]] = {}  # nothing that takes space

    def save(self, folder: Path) -> dict[str, checkpoint.Entry]:
        (folder / "weights.pt").write_bytes(b"weights")
        return {}


def make_saver(root: Path) -> Saver:
    """One process and one disk; the newest checkpoint alone is kept."""
    config = Config(model=small_config(), train=TrainConfig(keep_last=1, keep_best=False))
    copies = SimpleNamespace(busy=None, start=lambda step: None, finish=lambda: None)
    tokenizer = SimpleNamespace(save=lambda path: path.write_text("{}"))
    world, disks = World(0, 0, 1, torch.device("cpu")), Disks(0, (0,), ("here",))
    return Saver(root, config, world, disks, StubEngine(), tokenizer, copies)  # type: ignore[arg-type]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a save does, as it does it, each with its real effect."""
    seen: list[str] = []

    def note(module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(*args: Any) -> Any:
            seen.append(name)
            return real(*args)

        monkeypatch.setattr(module, name, call)

    note(saving, "gather")  # where all ranks wait for each other
    for name in ("seal", "publish", "rotate"):
        note(checkpoint, name)
    return seen


def test_the_old_one_goes_when_all_have_the_new_one(tmp_path: Path, events: list[str]) -> None:
    saver = make_saver(tmp_path)
    saver.save(1, {"step": 1}, None, last=False)
    events.clear()
    saver.save(2, {"step": 2}, None, last=False)
    assert events[events.index("seal") :] == ["seal", "gather", "publish", "gather", "rotate"]
    assert checkpoint.steps(tmp_path) == [2]


def test_the_old_one_stays_where_another_disk_fails_to_publish(
    tmp_path: Path, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = make_saver(tmp_path)
    saver.save(1, {"step": 1}, None, last=False)
    noted = saving.gather

    def gather(value: Any, world: World) -> list[Any]:
        if events[-1] == "publish":
            raise RuntimeError("the other one has no space left")
        return noted(value, world)

    monkeypatch.setattr(saving, "gather", gather)
    del events[:-1]
    with pytest.raises(RunFailure, match=r"step 2: the other one has no space left.*older ones are untouched"):
        saver.save(2, {"step": 2}, None, last=False)
    assert events[-1] == "publish"  # no rotate
    assert checkpoint.steps(tmp_path) == [1, 2]

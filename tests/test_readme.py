"""The README's commands, typed as they stand, after a shortened demo in a clone of this repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ranks import ROOT

SHORT = "train.max_steps=12 train.eval_every=6 train.eval_batches=2 train.sample_tokens=4"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed files with the set-up that is already here, and a run of the demo of a few steps."""
    folder = tmp_path_factory.mktemp("readme") / "project"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    for name in (".venv", ".setup"):
        if not (ROOT / name).exists():
            pytest.skip(f"no {name} here: this test wants the environment that `make test` sets up")
    (folder / ".venv").symlink_to(ROOT / ".venv")
    # Newer than the clone's files: `make` must not set up again, which would point the environment to the clone.
    shutil.copytree(ROOT / ".setup", folder / ".setup", copy_function=lambda _, new: Path(new).touch())
    env = {**os.environ, "DEMO_KEYS": SHORT, "PYTHONPATH": str(folder)}
    done = subprocess.run(["make", "demo"], cwd=folder, capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PyTorch and C say the same." in done.stdout
    for name in ("config.yaml", "log.jsonl", "tensorboard", "checkpoints", "model/model.safetensors", "model.bin"):
        assert (folder / "runs" / "demo" / name).exists(), name
    return folder


def test_every_command_of_the_readme_runs(clone: Path) -> None:
    fences = re.findall(r"```bash\n(.*?)```", (clone / "README.md").read_text(encoding="utf-8"), re.S)
    commands = [c for c in "".join(fences).splitlines() if c and not c.startswith("make ")]
    assert len(commands) > 12
    # One shell, since the first command activates the environment.
    script = "set -e\n" + "\n".join(f"echo '$ '{c!r}\n{c}" for c in commands)
    env = {**os.environ, "PYTHONPATH": str(clone)}
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=clone,
        capture_output=True,
        text=True,
        timeout=900,
        env=env,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    left = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True).stdout
    assert [line for line in left.splitlines() if ".setup" not in line and ".venv" not in line] == []

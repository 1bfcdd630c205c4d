"""What a run does when it is told to stop before it trains, and when the launcher above it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from ranks import ROOT

from nano_ds.nodes.attempt import Attempt
from nano_ds.nodes.launcher import Launch, Place
from nano_ds.nodes.wire import RUN


def test_a_signal_before_the_training_ends_it_at_once() -> None:
    """No process has said that it is there, so none would hear the signal, and there is nothing to save."""
    env = {**os.environ, RUN: "early"}
    launch = Launch([sys.executable, "-c", "import time; time.sleep(60)"], env, "early", Place(processes=2))
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    began = time.monotonic()
    outcome = Attempt(launch, None).run()
    assert time.monotonic() - began < 20
    assert (outcome.code, outcome.stopped) == (143, signal.SIGTERM) and "before the training began" in outcome.cause


PROCESS = """
import pathlib, sys, time
from nano_ds.nodes import ancestors
above, said = ancestors.launchers(), pathlib.Path(sys.argv[1])
try:
    ancestors.check_hostfile(above)
except ValueError as e:
    said.write_text(f"{len(above)} {ancestors.one_is_gone(above)} {e}")
while not ancestors.one_is_gone(above):
    time.sleep(0.05)
said.write_text("gone")
"""


def test_a_process_notices_what_became_of_the_plain_launcher(tmp_path: Path) -> None:
    launcher, said = tmp_path / "deepspeed", tmp_path / "said"
    launcher.write_text(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {PROCESS!r}, {str(said)!r}])\n")
    process = subprocess.Popen([sys.executable, str(launcher), "--hostfile", "nowhere"], cwd=ROOT)
    end = time.monotonic() + 60
    while not (said.exists() and said.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    assert said.read_text().startswith("1 False nowhere: no such hostfile")
    process.kill()
    process.wait()
    while said.read_text() != "gone" and time.monotonic() < end:
        time.sleep(0.05)
    assert said.read_text() == "gone"

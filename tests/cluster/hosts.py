"""Two or three real hosts on this machine, out of Linux namespaces.

Each node has its own network (eth0, an address in 10.77.0.0/24 that nobody else can reach), host name, process ids,
mounts (so that a folder can be a disk of its own) and ssh server. Files are shared otherwise, like a network disk.
Everything ends with the test session, even when that is killed: the nodes' first processes wait for its pipe.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).resolve().parent
PREFIX = "nano-ds-cluster-"
NAMES = ("nodeA", "nodeB", "nodeC")
PROGRAMS = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "ip": "iproute2",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "pdsh": "pdsh",
    "mpirun": "openmpi-bin",
}
ENV = {
    "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "PDSH_RCMD_TYPE": "ssh",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


def missing() -> str:
    """Why no cluster can be made on this machine, or an empty string."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "hosts are made of Linux namespaces, which needs root"
    lacking = {package for program, package in PROGRAMS.items() if shutil.which(program, path=ENV["PATH"]) is None}
    if lacking:
        return f"not installed: {', '.join(sorted(lacking))} (apt-get install)"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "there is no /dev/net/tun for the nodes' network"
    tried = subprocess.run(["unshare", "-n", "-u", "-m", "-i", "-p", "-f", "true"], capture_output=True, text=True)
    return f"the kernel gives no namespaces: {tried.stderr.strip()}" if tried.returncode else ""


class Node:
    """One host. Commands run in it until the cluster ends."""

    def __init__(self, name: str, address: str, folder: Path):
        self.name, self.address, self.folder = name, address, folder
        self.pid = 0  # of its first process, as this machine counts
        self._holder: subprocess.Popen[str] | None = None
        self._sshd: subprocess.Popen[str] | None = None

    def start(self, disks: Mapping[str, str], files: Mapping[str, str]) -> None:
        spec = json.dumps({"name": self.name, "disks": disks, "files": files})
        command = ["unshare", "-n", "-u", "-m", "-i", "-p", "-f", "--mount-proc", "--kill-child", sys.executable]
        self._holder = subprocess.Popen(
            [*command, "-S", str(HERE / "holder.py"), spec],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            raise RuntimeError(f"{self.name} did not come up")
        self.pid = _children(self._holder.pid)[0]

    def network_up(self) -> None:
        words = f"ip link set lo up && ip address add {self.address}/24 dev eth0 && ip link set eth0 mtu 9000 up"
        done = self.run(["sh", "-c", words])
        if done.returncode:
            raise RuntimeError(f"{self.name}: {done.stderr}")

    def enter(self, words: Sequence[str]) -> list[str]:
        """The command line that runs ``words`` in this host."""
        return ["nsenter", "-t", str(self.pid), "-n", "-u", "-m", "-i", "-p", f"--wdns={os.getcwd()}", *words]

    def path(self, path: Path) -> Path:
        """How a file of this node, perhaps on its private disk, is reached from outside."""
        return Path(f"/proc/{self.pid}/root{path}")

    def popen(self, words: Sequence[str], env: Mapping[str, str] | None = None, **more: object) -> Process:
        return Process(self, words, {**os.environ, **ENV, **(env or {})}, **more)

    def run(
        self, words: Sequence[str], env: Mapping[str, str] | None = None, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Runs ``words`` to their end; kills them, and raises, when that takes longer than ``timeout``."""
        process = self.popen(words, env)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as e:
            process.kill_inside(signal.SIGKILL)
            out, err = process.communicate()
            raise AssertionError(f"{self.name}: no end after {timeout} s: {words}\n{out}\n{err}") from e
        return subprocess.CompletedProcess(list(words), process.returncode, out, err)

    def processes(self, pattern: str = "") -> list[int]:
        """Processes of this host (as this machine counts) whose command line has ``pattern``; not the holder, sshd."""
        mine = _namespace(self.pid)
        skip = {self.pid}
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) in skip or _namespace(int(entry.name)) != mine:
                continue
            words = _cmdline(int(entry.name))
            if words and words[0] not in ("sshd:", "nsenter") and "sshd" not in words[0] and pattern in " ".join(words):
                found.append(int(entry.name))
        return sorted(found)

    def kill_all(self) -> None:
        """SIGKILL to everything on this host but its ssh server: as when it lost power and came up again."""
        while left := self.processes():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    @contextlib.contextmanager
    def replaced(self, path: Path, by: Path) -> Iterator[None]:
        """Puts another file or folder in the place of ``path``, on this host only."""
        done = self.run(["mount", "--bind", str(by), str(path)])
        if done.returncode:
            raise RuntimeError(done.stderr)
        try:
            yield
        finally:
            self.run(["umount", "-l", str(path)])

    def serve_ssh(self, keys: str = "") -> None:
        """Starts its ssh server; ``keys``: the file of those that it takes (default: this cluster's)."""
        config = self.folder / f"sshd_{self.name}"
        config.write_text(
            f"ListenAddress {self.address}\nHostKey {self.folder}/host_key\nPidFile none\nUsePAM no\nStrictModes no\n"
            f"AuthorizedKeysFile {keys or self.folder / 'authorized_keys'}\nPermitRootLogin yes\nMaxStartups 100\n"
        )
        self._sshd = subprocess.Popen(
            self.enter([shutil.which("sshd", path=ENV["PATH"]) or "sshd", "-D", "-e", "-f", str(config)]),
            stdin=subprocess.DEVNULL,
            stderr=open(self.folder / f"sshd_{self.name}.log", "a"),  # noqa: SIM115
            text=True,
        )
        end = time.monotonic() + 20
        probe = ["bash", "-c", f"exec 3<>/dev/tcp/{self.address}/22"]
        while subprocess.run(self.enter(probe), capture_output=True).returncode:
            if time.monotonic() > end or self._sshd.poll() is not None:
                raise RuntimeError((self.folder / f"sshd_{self.name}.log").read_text())
            time.sleep(0.02)

    def refuse_ssh(self) -> None:
        """Stops its ssh server, and the connections that are open."""
        assert self._sshd is not None
        for child in [*_descendants(self._sshd.pid), self._sshd.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self._sshd.wait()

    def stop(self) -> None:
        if self._holder is not None:
            assert self._holder.stdin is not None
            self._holder.stdin.close()
            try:
                self._holder.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._holder.kill()
                self._holder.wait()
            assert self._holder.stdout is not None
            self._holder.stdout.close()
        if self._sshd is not None:
            self._sshd.wait()


class Process(subprocess.Popen[str]):
    """A command in a node; its own process id is that of nsenter, which waits outside for it."""

    def __init__(self, node: Node, words: Sequence[str], env: Mapping[str, str], **more: object):
        super().__init__(  # type: ignore[call-overload]
            node.enter(words),
            env=env,
            text=True,
            errors="replace",
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more},
        )

    @property
    def inside(self) -> int:
        """The process id of the command itself, as this machine counts."""
        return _children(self.pid)[0]

    def kill_inside(self, number: int) -> None:
        """Sends a signal to the command (nsenter would only die of it)."""
        for pid in _children(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


class Cluster:
    """A context manager: ``nodes`` hosts that reach one another by name and by ssh.

    Args:
        nodes: how many, 2 or 3.
        disks: folders (they must exist) that are a private disk of every node; the value is its size (``"64m"``).
    """

    def __init__(self, nodes: int = 2, disks: Mapping[Path, str] | None = None):
        _forget_dead_sessions()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        self.nodes = [Node(name, f"10.77.0.{i + 1}", self.folder) for i, name in enumerate(NAMES[:nodes])]
        self.disks = {str(place): size for place, size in (disks or {}).items()}
        self._switch: subprocess.Popen[str] | None = None

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _start(self) -> None:
        files = self._ssh_files()
        for node in self.nodes:
            node.start({"/dev/shm": "1g", **self.disks}, files)
        ports = [word for node in self.nodes for word in (str(node.pid), node.name)]
        self._switch = subprocess.Popen(
            [sys.executable, "-S", str(HERE / "switch.py"), *ports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._answer()
        os.makedirs("/run/sshd", exist_ok=True)  # sshd insists on it
        for node in self.nodes:
            node.network_up()
            node.serve_ssh()

    def _ssh_files(self) -> dict[str, str]:
        """Keys, and the two system files that make the names known: by source, where they appear in the nodes."""
        for key in ("host_key", "key"):
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "cluster", "-f", str(self.folder / key)]
            subprocess.run(words, check=True)
        shutil.copy(self.folder / "key.pub", self.folder / "authorized_keys")
        (self.folder / "ssh_config").write_text(
            f"Host *\n  User root\n  IdentityFile {self.folder}/key\n  IdentitiesOnly yes\n  LogLevel ERROR\n"
            "  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  GlobalKnownHostsFile /dev/null\n"
        )
        lines = ["127.0.0.1 localhost", *(f"{n.address} {n.name}" for n in self.nodes)]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        return {
            str(self.folder / "ssh_config"): "/etc/ssh/ssh_config",
            str(self.folder / "hosts"): "/etc/hosts",
        }

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self.nodes:
            node.stop()
        if self._switch is not None:
            self._switch.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)

    def hostfile(self, slots: int = 1, nodes: int | None = None) -> Path:
        """A hostfile of the first ``nodes`` hosts (default: all)."""
        path = self.folder / f"hostfile-{slots}-{nodes}"
        path.write_text("".join(f"{n.name} slots={slots}\n" for n in self.nodes[:nodes]))
        return path

    def slow(self, milliseconds: float = 0, loss_percent: float = 0) -> None:
        """Delays every packet between the nodes, and loses some; without arguments the network is well again."""
        self._command(f"slow {milliseconds} {loss_percent}")

    def unplug(self, node: Node) -> None:
        """Pulls the network cable of a node: packets vanish without a word."""
        self._command(f"unplug {node.name}")

    def plug(self, node: Node) -> None:
        self._command(f"plug {node.name}")

    def _command(self, text: str) -> None:
        assert self._switch is not None and self._switch.stdin is not None
        self._switch.stdin.write(text + "\n")
        self._switch.stdin.flush()
        self._answer()

    def _answer(self) -> None:
        assert self._switch is not None and self._switch.stdout is not None
        if self._switch.stdout.readline() != "done\n":
            raise RuntimeError("the switch between the nodes died")


def _forget_dead_sessions() -> None:
    """Removes the folders that killed sessions left (their hosts ended with them)."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        owner = folder.name.removeprefix(PREFIX).split("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(w) for w in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _descendants(pid: int) -> list[int]:
    found = []
    for child in _children(pid):
        found += [*_descendants(child), child]
    return found


def _namespace(pid: int) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/pid")
    return ""


def _cmdline(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return []

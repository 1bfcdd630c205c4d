"""The weights of a Hugging Face directory: one `model.safetensors`, or shards and an index of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np

from nano_ds.errors import UserError
from nano_ds.files import read_json
from nano_ds.tensors import FLOATS, Shape, TensorFile, check_tensors

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class HFWeights:
    """Tensors by name, wherever they lie; opened, but not read before they are asked for."""

    def __init__(self, folder: Path, single: str = SINGLE, index: str = INDEX):
        """Raises UserError naming the file that is missing, damaged, or no part of the folder."""
        self.folder = folder
        if (folder / single).is_file():
            file = TensorFile(folder / single)
            self._files = dict.fromkeys(file, file)
        elif (folder / index).is_file():
            self._files = _shards(folder, index)
        else:
            raise UserError(_no_weights(folder))
        self.shapes: dict[str, Shape] = {name: f.shapes[name] for name, f in self._files.items()}
        self.dtypes: dict[str, str] = {name: f.dtypes[name] for name, f in self._files.items()}

    def check(self, expected: Mapping[str, Shape], source: str, ignore: Collection[str] = ()) -> None:
        """Raises UserError with everything that differs from ``expected``, which ``source`` asks for."""
        shapes = {name: shape for name, shape in self.shapes.items() if name not in ignore}
        check_tensors(self.folder, shapes, self.dtypes, expected, source, FLOATS)

    def __getitem__(self, name: str) -> np.ndarray:
        """One tensor as float32; exact from float16 and bfloat16."""
        return self._files[name][name].astype(np.float32, copy=False)

    def pieces(self, name: str) -> Iterator[np.ndarray]:
        """The numbers of one tensor in order, as float32, a few million at once."""
        for piece in self._files[name].pieces(name):
            yield piece.astype(np.float32, copy=False)


def _shards(folder: Path, index: str) -> dict[str, TensorFile]:
    tree = read_json(folder / index, "the index of a model's shards")
    where = tree.get("weight_map") if isinstance(tree, dict) else None
    if not isinstance(where, dict) or not where or not all(isinstance(v, str) for v in where.values()):
        raise UserError(f"{folder / index}: lacks weight_map, the file of each tensor; fetch the model again")
    files: dict[str, TensorFile] = {}
    for name in sorted(set(where.values())):
        # The index comes from anywhere: it may only name files beside it.
        if Path(name).name != name or "\\" in name or "\0" in name or not name.endswith(".safetensors"):
            raise UserError(f"{folder / index}: names {name!r}; shards are .safetensors files in the same folder")
        files[name] = TensorFile(folder / name, "a shard of the weights")
    for name, file in where.items():
        if name not in files[file]:
            raise UserError(f"{folder / file}: lacks {name}, which {index} says is there; fetch the shard again")
    extra = [n for file, held in files.items() for n in held if where.get(n) != file]
    if extra:
        raise UserError(f"{folder / index}: does not list {extra[0]}, which a shard holds; fetch the model again")
    return {name: files[file] for name, file in where.items()}


def _no_weights(folder: Path) -> str:
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        return (
            f"{folder}: its weights are in {pickles[0]}, a pickle, which can run code when it is read. Where you trust "
            "them, convert them with transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
        )
    return f"{folder}: lacks {SINGLE} (or {INDEX} and the shards that it lists)"

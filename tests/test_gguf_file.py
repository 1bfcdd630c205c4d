"""The GGUF container: files put together by hand, damaged in every way, and read by the `gguf` package."""

import struct
import tracemalloc

import numpy as np
import pytest
from gguf_helpers import ARRAY, BOOL, F32, STRING, U32, U64, build, text, write

from nano_ds.errors import UserError
from nano_ds.interop.blocks import TYPES
from nano_ds.interop.gguf_file import GGUFFile, GGUFWriter

KEYS = {
    "general.architecture": (STRING, "llama"),
    "a.u8": (0, 200),
    "a.i8": (1, -3),
    "a.u16": (2, 60000),
    "a.i16": (3, -300),
    "a.u32": (U32, 1 << 31),
    "a.i32": (5, -5),
    "a.f32": (F32, 0.5),
    "a.yes": (BOOL, 1),
    "a.u64": (U64, 1 << 63),
    "a.i64": (11, -(1 << 40)),
    "a.f64": (12, 0.1),
    "a.texts": (ARRAY, (STRING, ["", "é", "猫"])),
    "a.numbers": (ARRAY, (5, [1, -2, 3])),
    "a.flags": (ARRAY, (BOOL, [1, 0])),
    "a.none": (ARRAY, (U32, [])),
}


def small(**more):
    raw = np.arange(64, dtype="<f4")
    q = np.arange(2 * 34, dtype=np.uint8)
    return build(KEYS, {"m": ((32, 2), 0, raw.tobytes()), "q": ((64,), 8, q.tobytes())}, **more)


def refused(path, data, says):
    with pytest.raises(UserError) as e:
        GGUFFile(write(path, data))
    assert says in str(e.value) and str(path) in str(e.value) and "\n" not in str(e.value), e.value


@pytest.mark.parametrize("version", [2, 3])
def test_reads_every_type_of_value_and_tensors(version, tmp_path):
    file = GGUFFile(write(tmp_path / "x.gguf", small(version=version)))
    got = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in file.metadata.items()}
    wanted = {k: v[1] if isinstance(v, tuple) else v for k, (_, v) in KEYS.items()}
    assert got == {**wanted, "a.yes": True, "a.flags": [True, False]}
    assert list(file) == ["m", "q"] and len(file) == 2
    assert file.infos["m"].shape == (2, 32) and (file["m"] == np.arange(64).reshape(2, 32)).all()
    assert file["q"].shape == (64,) and file.raw("q").size == 68 and not file.raw("q").flags.writeable


def test_honours_the_alignment(tmp_path):
    keys = {"general.alignment": (U32, 256)}
    data = build(keys, {"a": ((1,), 0, b"\0\0\x80?"), "b": ((1,), 0, b"\0\0\0@")}, alignment=256)
    file = GGUFFile(write(tmp_path / "x.gguf", data))
    assert file["a"][0] == 1 and file["b"][0] == 2 and file.infos["b"].offset == 256
    for wrong in (0, 3, 48, 1 << 20):
        refused(tmp_path / "x.gguf", build({"general.alignment": (U32, wrong)}, {}), "general.alignment")
    refused(tmp_path / "x.gguf", build({"general.alignment": (F32, 32.0)}, {}), "general.alignment")


def test_every_truncation_is_refused(tmp_path):
    data = small()
    end = len(data) - (-68 % 32)  # the padding behind the last tensor is nobody's
    for cut in range(end):
        with pytest.raises(UserError):
            GGUFFile(write(tmp_path / "x.gguf", data[:cut]))
    GGUFFile(write(tmp_path / "x.gguf", data[:end]))


def test_every_flipped_byte_is_refused_or_read(tmp_path):
    """No flipped byte of the head may end in anything but a UserError or a file."""
    data = small()
    for at in range(len(data) - 400):
        for flip in (0x01, 0x80, 0xFF):
            bent = bytearray(data)
            bent[at] ^= flip
            try:
                file = GGUFFile(write(tmp_path / "x.gguf", bytes(bent)))
                for name in file:
                    assert file[name].nbytes <= 4096
            except UserError:
                pass


def head(tensors=0, keys=0, rest=b"", version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


def tensor(name="t", dims=(32,), kind=0, offset=0, count=None):
    n = len(dims) if count is None else count
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", n, *dims, kind, offset)


HUGE = 1 << 60
DAMAGED = {
    "no GGUF file": b"GGML" + bytes(100),
    "is empty": b"",
    "version 1": head(version=1),
    "big-endian": head(version=3 << 24),
    "claims 1152921504606846976 tensors": head(HUGE),
    "and 1152921504606846976 keys": head(0, HUGE),
    "a text of 2^60": head(0, 1, struct.pack("<Q", HUGE) + bytes(20)),
    "numbers by the 2^60": head(0, 1, text("k") + struct.pack("<IIQ", ARRAY, U64, HUGE) + bytes(20)),
    "2^61 of 8 bytes": head(0, 1, text("k") + struct.pack("<IIQ", ARRAY, U64, 1 << 61) + bytes(20)),
    "1152921504606846976 texts cannot be": head(0, 1, text("k") + struct.pack("<IIQ", ARRAY, STRING, HUGE) + bytes(20)),
    "an array of arrays": head(0, 1, text("k") + struct.pack("<IIQ", ARRAY, ARRAY, 1) + bytes(40)),
    "array of value type 77": head(0, 1, text("k") + struct.pack("<IIQ", ARRAY, 77, 1) + bytes(40)),
    "value type 13": head(0, 1, text("k") + struct.pack("<I", 13) + bytes(20)),
    "a boolean of 2": head(0, 1, text("k") + struct.pack("<IB", BOOL, 2) + bytes(20)),
    "is empty ": head(0, 1, text("") + struct.pack("<IB", BOOL, 1) + bytes(20)),
    "there twice: k": head(0, 2, 2 * (text("k") + struct.pack("<IB", BOOL, 1))),
    "tensor t is there twice": head(2, 0, 2 * tensor()) + bytes(400),
    "has no name": head(1, 0, tensor("") + bytes(50)),
    "0 dimensions": head(1, 0, tensor(dims=(), count=0) + bytes(50)),
    "5 dimensions": head(1, 0, tensor(dims=(1,) * 5) + bytes(50)),
    "4000000000 dimensions": head(1, 0, tensor(count=4000000000) + bytes(50)),
    "are impossible": head(1, 0, tensor(dims=(0,)) + bytes(50)),
    "dimensions [4294967296, 4294967296, 4294967296]": head(1, 0, tensor(dims=(1 << 32,) * 3) + bytes(50)),
    "tensor type Q2_K": head(1, 0, tensor(kind=10) + bytes(500)),
    "tensor type 4": head(1, 0, tensor(kind=4) + bytes(500)),
    "do not fill blocks of 256": head(1, 0, tensor(kind=12) + bytes(500)),
    "no multiple of the alignment": head(1, 0, tensor(offset=8) + bytes(500)),
    "needs 128 bytes at 1152921504606846976": head(1, 0, tensor(offset=HUGE) + bytes(500)),
    "inside the tensor before": head(2, 0, tensor("a") + tensor("b", offset=32) + bytes(500)),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damage_is_named_and_nothing_is_allocated(what, tmp_path):
    says = {"a text of 2^60": "needs 1152921504606846976", "is empty ": "is empty"}
    says |= {"numbers by the 2^60": "cut off", "2^61 of 8 bytes": "cut off"}
    tracemalloc.start()
    refused(tmp_path / "x.gguf", DAMAGED[what], says.get(what, what))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_folders_and_absent_files_are_named(tmp_path):
    for path, says in ((tmp_path, "is a folder"), (tmp_path / "no.gguf", "no such file")):
        with pytest.raises(UserError, match=says):
            GGUFFile(path)


METADATA = {
    "general.architecture": "llama",
    "x.flag": True,
    "x.count": 7,
    "x.large": 1 << 40,
    "x.number": 0.25,
    "x.exact": np.float64(0.1),
    "x.text": "猫 \t\n",
    "x.texts": ["a", "", "é"],
    "x.ids": np.array([1, -2], np.int32),
}


def written(path):
    rng = np.random.default_rng(0)
    tensors = {
        "a": rng.normal(size=(3, 256)),
        "b": rng.normal(size=(256,)),
        "c": rng.normal(size=(5, 512)),
        "d": rng.normal(size=(7,)),
    }
    kinds = {"a": "q4_k", "b": "f32", "c": "q8_0", "d": "bf16"}
    tensors = {n: t.astype(np.float32) for n, t in tensors.items()}
    with GGUFWriter(path, METADATA, [(n, t.shape, kinds[n]) for n, t in tensors.items()]) as writer:
        for name, array in tensors.items():
            writer.write(name, array)
    return tensors, kinds


def test_what_is_written_is_read(tmp_path):
    tensors, kinds = written(tmp_path / "x.gguf")
    file = GGUFFile(tmp_path / "x.gguf")
    got = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in file.metadata.items()}
    assert got == {**METADATA, "x.ids": [1, -2]}
    assert [i.type.name for i in file.infos.values()] == list(kinds.values())
    assert (file["b"] == tensors["b"]).all() and file["a"].shape == (3, 256)
    for name in tensors:
        assert np.abs(file[name] - tensors[name]).max() < 0.3
    assert (tmp_path / "x.gguf").stat().st_size % 32 == 0


def test_the_gguf_package_reads_the_same(tmp_path):
    gguf = pytest.importorskip("gguf", reason="the `dev` extra has it")
    written(tmp_path / "x.gguf")
    ours, theirs = GGUFFile(tmp_path / "x.gguf"), gguf.GGUFReader(tmp_path / "x.gguf")
    for key, wanted in ours.metadata.items():
        got = theirs.fields[key].contents()
        assert got == (wanted.tolist() if isinstance(wanted, np.ndarray) else wanted), key
    assert [t.name for t in theirs.tensors] == list(ours)
    for t in theirs.tensors:
        assert tuple(reversed(t.shape.tolist())) == ours.infos[t.name].shape
        assert int(t.tensor_type) == ours.infos[t.name].type.code
        values = gguf.quants.dequantize(t.data, t.tensor_type).reshape(ours.infos[t.name].shape)
        assert (values == ours[t.name]).all()


def test_a_file_of_the_gguf_package_is_read(tmp_path):
    gguf = pytest.importorskip("gguf", reason="the `dev` extra has it")
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_uint32("llama.block_count", 3)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    array = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    writer.add_tensor("t", array)
    writer.add_tensor("h", array.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(tmp_path / "x.gguf")
    assert file.metadata["llama.block_count"] == 3 and file.metadata["tokenizer.ggml.tokens"] == ["a", "b"]
    assert (file["t"] == array).all() and np.allclose(file["h"], array, atol=1e-3)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"old")
    bad = np.array([1, np.nan], np.float32)
    with (
        pytest.raises(UserError, match="t: holds numbers that are not finite"),
        GGUFWriter(path, {}, [("t", (2,), "f32")]) as writer,
    ):
        writer.write("t", bad)
    with (
        pytest.raises(UserError, match=r"t: a weight.*too large for f16"),
        GGUFWriter(path, {}, [("t", (2,), "f16")]) as writer,
    ):
        writer.write("t", np.array([1e6, 0], np.float32))
    with pytest.raises(AssertionError, match="t was not written"), GGUFWriter(path, {}, [("t", (2,), "f16")]):
        pass
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_types_are_told_by_their_numbers():
    codes = [t.code for t in TYPES.values()]
    assert len(set(codes)) == len(codes)

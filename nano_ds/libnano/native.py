"""The shared library as ctypes sees it: where it is, its functions, its structures, its errors.

The structures are made of the table that the library itself exports (``nano_layout``), so a member that was added to
``nano.h`` needs nothing here, and a library of another age cannot be misread. The functions are listed below;
``tests/test_libnano.py`` compares the list with ``nano.h``.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_bool, c_char_p, c_double, c_float, c_size_t, c_uint32, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

from nano_ds.errors import RunFailure, UserError

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent.parent
NAME = "libnano.so"

# nano_status
OK, ERR_ARGUMENT, ERR_FILE, ERR_FORMAT, ERR_MISMATCH, ERR_CONTEXT, ERR_MEMORY, ERR_SYSTEM = range(8)
# nano_meta_type
META_UNSIGNED, META_SIGNED, META_NUMBER, META_BOOL, META_TEXT, META_ARRAY = range(6)
MACHINE = (ERR_MEMORY, ERR_SYSTEM)  # no argument could have prevented these

Layout = dict[str, type[ctypes.Structure]]
TYPES: dict[tuple[str, int], Any] = {
    **{("u", n): t for n, t in ((1, ctypes.c_uint8), (2, ctypes.c_uint16), (4, c_uint32), (8, ctypes.c_uint64))},
    **{("i", n): t for n, t in ((1, ctypes.c_int8), (2, ctypes.c_int16), (4, ctypes.c_int32), (8, ctypes.c_int64))},
    ("b", 1): c_bool,
    ("f", 4): c_float,
    ("f", 8): c_double,
    ("p", ctypes.sizeof(c_void_p)): c_void_p,
}


class Member(ctypes.Structure):
    """nano_member: a row of the table."""

    _fields_ = [
        ("structure", c_char_p),
        ("name", c_char_p),
        ("offset", c_uint32),
        ("size", c_uint32),
        ("count", c_uint32),
        ("kind", c_uint32),
    ]


def prototypes(layout: Layout) -> dict[str, tuple[Any, list[Any]]]:
    """Result and parameters of each function that the package calls."""
    out, ids = POINTER(c_void_p), POINTER(c_uint32)
    status, handle, text, size = ctypes.c_int, c_void_p, c_char_p, c_size_t
    config, adapter_config = POINTER(layout["nano_config"]), POINTER(layout["nano_adapter_config"])
    model_params, session_params = layout["nano_model_params"], layout["nano_session_params"]
    sampler_params, stats = layout["nano_sampler_params"], layout["nano_session_stats"]
    return {
        "nano_last_error": (text, []),
        "nano_model_default_params": (model_params, []),
        "nano_model_open_file": (status, [out, text, POINTER(model_params)]),
        "nano_model_open_memory": (status, [out, c_void_p, size, POINTER(model_params)]),
        "nano_model_close": (None, [handle]),
        "nano_model_config": (config, [handle]),
        "nano_model_kernels": (text, [handle]),
        "nano_model_meta": (c_bool, [handle, c_uint32, POINTER(layout["nano_meta"])]),
        "nano_token_bytes": (c_void_p, [handle, c_uint32, POINTER(size)]),
        "nano_token_is_special": (c_bool, [handle, c_uint32]),
        "nano_token_is_stop": (c_bool, [handle, c_uint32]),
        "nano_token_bos": (c_bool, [handle, ids]),
        "nano_tokenize": (status, [handle, text, size, c_bool, POINTER(ids), POINTER(size)]),
        "nano_free": (None, [c_void_p]),
        "nano_chat_settle": (
            status,
            [handle, ids, size, POINTER(size), POINTER(ids), POINTER(size)],
        ),
        "nano_adapter_open_file": (status, [out, text]),
        "nano_adapter_open_memory": (status, [out, c_void_p, size]),
        "nano_adapter_close": (None, [handle]),
        "nano_adapter_get_config": (adapter_config, [handle]),
        "nano_session_default_params": (session_params, []),
        "nano_session_open": (status, [out, handle, POINTER(session_params)]),
        "nano_session_close": (None, [handle]),
        "nano_session_set_adapter": (status, [handle, handle]),
        "nano_session_reset": (None, [handle]),
        "nano_session_length": (c_uint32, [handle]),
        "nano_session_context": (c_uint32, [handle]),
        "nano_session_threads": (c_uint32, [handle]),
        "nano_session_eval": (status, [handle, ids, size, POINTER(c_float)]),
        "nano_session_logits": (POINTER(c_float), [handle]),
        "nano_session_tokens": (ids, [handle]),
        "nano_session_rewind": (status, [handle, c_uint32]),
        "nano_session_keep": (status, [handle, ids, size, ids]),
        "nano_session_generate": (status, [handle, ids, size, POINTER(size)]),
        "nano_session_get_stats": (stats, [handle]),
        "nano_session_save_file": (status, [handle, text]),
        "nano_session_load_file": (status, [handle, text]),
        "nano_probe_session_file": (status, [text, ids]),
        "nano_sampler_default_params": (sampler_params, []),
        "nano_session_sampler": (sampler_params, [handle]),
        "nano_session_set_sampler": (status, [handle, POINTER(sampler_params)]),
        "nano_session_sample": (status, [handle, ids]),
    }


class Library:
    """The loaded library; ``functions`` and ``layout`` by their names in ``nano.h``."""

    def __init__(self, path: Path):
        self.path = path
        again = "`make -C runtime_c clean all` builds it again"
        try:
            self._cdll = ctypes.CDLL(str(path))
        except OSError as e:
            raise UserError(f"{path}: cannot be loaded ({e}); {again}") from None
        try:
            self.layout = read_layout(self._cdll)
            self.functions = prototypes(self.layout)
            for name, (result, parameters) in self.functions.items():
                function = getattr(self._cdll, name)
                function.restype, function.argtypes = result, parameters
        except (AttributeError, KeyError) as e:
            missing = e.args[0] if isinstance(e, KeyError) else e
            raise UserError(f"{path}: is not the library of this package ({missing}); {again}") from None

    def __getattr__(self, name: str) -> Any:
        """A function of the library. Calls release the interpreter's lock while they run."""
        if name.startswith("nano_"):
            return getattr(self._cdll, name)
        raise AttributeError(name)

    def check(self, status: int, about: object = None) -> None:
        """Raises what the last call of this thread has to say, unless it went well.

        Raises:
            RunFailure: the machine's fault (memory, threads).
            UserError: everything else; ``about`` names the file, where the message does not do so itself.
        """
        if status == OK:
            return
        said = self.nano_last_error().decode("utf-8", "replace")
        text = said if about is None or status == ERR_FILE else f"{about}: {said}"
        raise RunFailure(text) if status in MACHINE else UserError(text)


def read_layout(cdll: Any) -> Layout:
    """A ctypes structure for every structure in the library's table."""
    table_of = cdll.nano_layout
    table_of.restype, table_of.argtypes = POINTER(Member), [POINTER(c_size_t)]
    n = c_size_t()
    table = table_of(ctypes.byref(n))
    sizes: dict[str, int] = {}
    members: dict[str, list[tuple[str, int, Any]]] = {}
    for row in table[: n.value]:
        structure, name = row.structure.decode(), row.name.decode()
        if name:
            item = TYPES[chr(row.kind), row.size // row.count]
            members[structure].append((name, row.offset, item if row.count == 1 else item * row.count))
        else:
            sizes[structure], members[structure] = row.size, []
    return {structure: _structure(structure, size, members[structure]) for structure, size in sizes.items()}


def _structure(name: str, size: int, members: list[tuple[str, int, Any]]) -> type[ctypes.Structure]:
    """Members (name, offset, type) at exactly these offsets: what lies between them is filled with bytes."""
    fields: list[tuple[str, Any]] = []
    at = 0
    for member, offset, kind in sorted(members, key=lambda m: m[1]):
        if offset > at:
            fields.append((f"_gap{at}", ctypes.c_uint8 * (offset - at)))
        fields.append((member, kind))
        at = offset + ctypes.sizeof(kind)
    if size > at:
        fields.append((f"_gap{at}", ctypes.c_uint8 * (size - at)))
    made: type[ctypes.Structure] = type(name, (ctypes.Structure,), {"_fields_": fields})
    assert ctypes.sizeof(made) == size, (name, ctypes.sizeof(made), size)
    for member, offset, _ in members:
        assert getattr(made, member).offset == offset, (name, member, offset)
    return made


def values(structure: ctypes.Structure) -> dict[str, Any]:
    """The members of a structure; arrays as lists."""
    out = {}
    for field in structure._fields_:
        if not field[0].startswith("_gap"):
            value = getattr(structure, field[0])
            out[field[0]] = list(value) if isinstance(value, ctypes.Array) else value
    return out


def find_library() -> Path:
    """``NANO_LIB``, or the file in the package's folder, or the one that `make` built in the checkout.

    Raises:
        UserError: there is none, with the command that builds it.
    """
    named = os.environ.get("NANO_LIB")
    if named:
        if not Path(named).is_file():
            raise UserError(f"NANO_LIB: {named} is no file; name a {NAME}, or unset it")
        return Path(named)
    for path in (PACKAGE / NAME, ROOT / "runtime_c" / "build" / NAME):
        if path.is_file():
            return path
    raise UserError(
        f"the C library is not built: run `make -C {ROOT / 'runtime_c'}`, or let NANO_LIB name a {NAME} elsewhere"
    )


@lru_cache(maxsize=1)
def library() -> Library:
    """The library, loaded when first asked for."""
    return Library(find_library())

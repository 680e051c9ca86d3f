"""The few numbers of a GGUF file that decide how large a session's K and V are."""
import struct

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


def _take(file, form):
    data = file.read(struct.calcsize(form))
    return struct.unpack(form, data)[0]


def _string(file):
    return file.read(_take(file, "<Q")).decode("utf-8", "replace")


def _value(file, kind):
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        inner, count = _take(file, "<I"), _take(file, "<Q")
        if inner in _SCALARS:
            file.seek(count * struct.calcsize(_SCALARS[inner]), 1)
        else:
            for _ in range(count):
                _value(file, inner)
        return None
    return _take(file, _SCALARS[kind])


def kv_bytes_per_token(path):
    """Bytes of K and V of one token over all layers, as the engine stores them (16 bits per number)."""
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file")
        _take(file, "<I")
        _take(file, "<Q")
        values = {}
        for _ in range(_take(file, "<Q")):
            key = _string(file)
            values[key] = _value(file, _take(file, "<I"))
    heads = values["llama.attention.head_count"]
    dim = values["llama.embedding_length"] // heads
    dims = values.get("llama.attention.key_length", dim) + values.get("llama.attention.value_length", dim)
    return 2 * values["llama.block_count"] * values.get("llama.attention.head_count_kv", heads) * dims

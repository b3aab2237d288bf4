from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import textwrap
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rosler_jax.modelfile as modelfile
from rosler_jax import _coding
from rosler_jax._frame import leb128
from rosler_jax._header_words import WORDS
from rosler_jax.modelfile import (
    ModelFileError,
    QuantizedTensor,
    bytes_of,
    decode,
    encode,
    load,
    save,
    to_numpy,
)

INTEGER_BITS = (2, 3, 4, 8, 16)
PREFIX = struct.Struct("<4sHHIIQ")


def random_tensor(seed, shape, bits, axis):
    rng = np.random.default_rng(seed)
    if bits == 32:
        values = rng.standard_normal(shape).astype(np.float32)
        return QuantizedTensor(values, np.ones((), np.float32), 32, None)
    levels = 2 ** (bits - 1) - 1
    values = rng.integers(-levels, levels + 1, shape).astype(np.int16 if bits == 16 else np.int8)
    size = () if axis is None else (shape[axis],)
    raw = np.float32(rng.uniform(1e-9, 3.0, size)).view(np.uint32) & 0xFFFF0000
    return QuantizedTensor(values, raw.astype(np.uint32).view(np.float32), bits, axis)


def example():
    tensors = {
        "fc1/u": random_tensor(0, (16, 4), 4, 1),
        "fc1/bias": random_tensor(1, (9,), 16, None),
        "fc2/r": random_tensor(2, (3, 5), 3, 0),
        "head": random_tensor(3, (5, 3), 2, 1),
        "norm": random_tensor(4, (3,), 32, None),
        "seeds": np.array([[1, 2], [3, 0xFFFFFFFF]], np.uint32),
        "temperature": np.float32(1.5),
    }
    spec = {"kind": "mlp", "widths": [16, 9, 3], "nested": {"ünï": None, "x": 1.25}}
    return tensors, spec, {"accuracy": 0.981, "note": "a\u0000b"}


def quantized(values, scale=1.0, bits=4, axis=None):
    return QuantizedTensor(np.asarray(values), np.asarray(scale, np.float32), bits, axis)


def assert_same(a, b):
    if isinstance(a, QuantizedTensor):
        assert isinstance(b, QuantizedTensor) and (a.bits, a.axis) == (b.bits, b.axis)
        assert_same(np.asarray(a.values), np.asarray(b.values))
        assert_same(np.asarray(a.scale), np.asarray(b.scale))
    else:
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.tobytes() == b.tobytes()


def assert_same_model(model, tensors, spec, metadata):
    assert model.spec == spec and model.metadata == metadata
    assert list(model.tensors) == list(tensors)
    for name, tensor in tensors.items():
        assert_same(tensor, model.tensors[name])


def resign(data):
    """The same bytes with a correct checksum."""
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


def forge(header, payload=b"", *, announced=None):
    """A file with any header text and payload, correctly signed."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    stored = packer.compress(text) + packer.flush()
    size = len(text) if announced is None else announced
    prefix = PREFIX.pack(b"ROSL", 1, 0, len(stored), size, len(payload))
    return resign(prefix + stored + payload + bytes(4))


def forge_rows(rows, payload=b""):
    return forge({"spec": {}, "meta": {}, "tensors": rows}, payload)


def test_round_trip_through_a_file(tmp_path):
    tensors, spec, metadata = example()
    path = tmp_path / "model.rosler"
    size = save(path, tensors, spec, metadata)
    model = load(path)
    assert_same_model(model, tensors, spec, metadata)
    assert size == model.file_bytes == path.stat().st_size
    assert os.listdir(tmp_path) == ["model.rosler"]


@settings(max_examples=100, deadline=None)
@given(
    shape=st.lists(st.integers(0, 6), max_size=4).map(tuple),
    bits=st.sampled_from((*INTEGER_BITS, 32)),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_round_trip_of_any_shape(shape, bits, seed, data):
    axes = [None, *range(len(shape))] if bits != 32 else [None]
    tensor = random_tensor(seed, shape, bits, data.draw(st.sampled_from(axes)))
    model = decode(encode({"w": tensor}, {}, {}))
    assert_same(tensor, model.tensors["w"])
    expected = (np.asarray(tensor.values).size * bits + 7) // 8
    stored = bytes_of({"w": tensor})["w"]
    assert stored.values == expected
    assert stored.scales == (0 if bits == 32 else 2 * np.asarray(tensor.scale).size)


@pytest.mark.parametrize("dtype", modelfile._DTYPES)
def test_round_trip_of_plain_arrays(dtype):
    array = np.random.default_rng(0).integers(0, 100, (3, 4)).astype(dtype)
    for layout in (array, array.T, array[:, ::2], array.astype(">" + dtype)):
        read = decode(encode({"a": layout}, {}, {})).tensors["a"]
        assert read.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(read, layout)


def test_quantised_values_come_from_jax_unchanged():
    import jax.numpy as jnp

    from rosler_jax.quantization import dequantize, dequantize_params, quantize_params

    weights = jnp.asarray(np.random.default_rng(0).standard_normal((30, 7)), jnp.float32)
    params = {"fc": {"kernel": weights, "bias": weights[0]}}
    for bits in (*INTEGER_BITS, 32):
        tensors = quantize_params(params, bits)
        model = decode(encode(tensors, {}, {}))
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(dequantize(tensor), to_numpy(model.tensors[name]))
        restored = dequantize_params(model.tensors, like=params)
        expected = dequantize_params(tensors, like=params)
        np.testing.assert_array_equal(restored["fc"]["kernel"], expected["fc"]["kernel"])


def test_bytes_add_up_to_the_file():
    tensors, spec, metadata = example()
    data = encode(tensors, spec, metadata)
    header_bytes = PREFIX.unpack_from(data)[3]
    payload = sum(stored.total for stored in bytes_of(tensors).values())
    assert len(data) == PREFIX.size + header_bytes + payload + 4
    assert bytes_of(tensors)["fc1/u"].values == 32 and bytes_of(tensors)["fc1/u"].scales == 8


def test_overhead_of_a_small_net():
    # A 7 kB net must not be buried under its table: prefix, spec, table and checksum.
    tensors = {
        f"fc{i}/{leaf}": random_tensor(i, shape, bits, axis)
        for i in (1, 2)
        for leaf, shape, bits, axis in (("u", (256, 32), 4, 1), ("bias", (256,), 16, None))
    }
    data = encode(tensors, {"kind": "seeded", "widths": [784, 256, 256, 10], "seed": [1, 2]}, {})
    payload = sum(stored.total for stored in bytes_of(tensors).values())
    assert len(data) - payload < 200


def test_layout_is_the_documented_one():
    # Written out by hand from the module's description, as a C reader would.
    values = np.array([[1, -1, 3], [-3, 0, 2]], np.int8)
    scale = np.array([0.5, 2.0, 1.0], np.float32)
    data = encode({"w": QuantizedTensor(values, scale, 3, 1)}, {"a": 1}, {})
    magic, version, reserved, stored, size, payload_size = PREFIX.unpack_from(data)
    assert (magic, version, reserved) == (b"ROSL", 1, 0)
    header = zlib.decompress(data[24 : 24 + stored], -15)
    assert header == b'{"spec":{"a":1},"meta":{},"tensors":[["w",3,1,2,3]]}'
    assert size == len(header)
    payload = data[24 + stored : -4]
    assert len(payload) == payload_size == 6 + 3
    assert payload[:6] == struct.pack("<3H", 0x3F00, 0x4000, 0x3F80)

    def get(i, bits):
        word = 0
        for k in range(bits):
            t = i * bits + k
            word |= ((payload[6 + (t >> 3)] >> (t & 7)) & 1) << k
        return (word ^ (1 << (bits - 1))) - (1 << (bits - 1))

    assert [get(i, 3) for i in range(6)] == values.ravel().tolist()
    assert struct.unpack("<I", data[-4:])[0] == zlib.crc32(data[:-4])


def test_same_input_gives_same_bytes():
    assert encode(*example()) == encode(*example())


def test_version_1_files_stay_readable():
    # A file as the first release writes it; if this fails, the format changed: raise VERSION.
    data = bytes.fromhex(GOLDEN)
    model = decode(data)
    assert model.spec == {"rank": 8}
    np.testing.assert_array_equal(to_numpy(model.tensors["w"]), [[0.5, -0.5], [1.5, 0.0]])


V1 = Path(__file__).parent / "data_v1"


@pytest.mark.parametrize("path", sorted(V1.glob("*.rosler")), ids=lambda path: path.stem)
def test_version_1_files_hold_what_they_held(path):
    # Written by the release that knew version 1 alone; the digests are of the weights then read.
    digest = hashlib.sha256()
    for name, tensor in load(path).tensors.items():
        values = to_numpy(tensor) if isinstance(tensor, QuantizedTensor) else tensor
        digest.update(f"{name} {values.dtype} {values.shape}".encode() + values.tobytes())
    assert digest.hexdigest() == json.loads((V1 / "digests.json").read_text())[path.name]


GOLDEN = (
    "524f534c0100000036000000370000000600000000000000ab562a2e484d56b2aa562a4acccb56b2"
    "b2a8d551ca4d2d49048a005925a979c5f945c54a56d1d14ae54a3ac63a863a463a46b1b1b500003f"
    "003ff900f47b6346"
)


def test_every_truncation_is_noticed(tmp_path):
    data = encode(*example())
    path = tmp_path / "cut.rosler"
    for length in range(len(data)):
        with pytest.raises(ModelFileError, match=r"truncated|bad magic"):
            decode(data[:length])
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelFileError, match=r"cut\.rosler: truncated: \d+ bytes of \d+"):
        load(path)
    with pytest.raises(ModelFileError, match="1 bytes too many"):
        decode(data + b"\0")


def test_every_flipped_bit_is_noticed():
    # CRC-32 finds every single flipped bit; a flipped length is found before it.
    assert_every_flipped_bit_is_noticed(encode(*example()))


def assert_every_flipped_bit_is_noticed(data: bytes) -> None:
    for position in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(ModelFileError):
            decode(bytes(damaged))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_with_a_correct_checksum(data):
    # A forged checksum leads the damage into the parser: an error of ours or a sound model, and no
    # memory beyond a small multiple of the file and the header's bound.
    good = encode(*example())
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(good) - 5))] = data.draw(st.integers(0, 255))
    check_survives(resign(bytes(damaged)))


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(0, 9)
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
    | st.sampled_from(["f4", "u4", "b1", "O", "V8", "spec"]),
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.text(max_size=2) | JSON_VALUES,
            st.sampled_from((*INTEGER_BITS, 32, "f4")) | JSON_VALUES,
            st.none() | st.integers(-1, 3) | JSON_VALUES,
            st.integers(0, 4) | JSON_VALUES,
            st.integers(0, 2**64) | JSON_VALUES,
        )
        | JSON_VALUES,
        max_size=3,
    ),
    payload=st.binary(max_size=40),
)
def test_forged_tables(rows, payload):
    check_survives(forge_rows(rows, payload))


# Version 3: coded.

GRAPH = [["any", "JSON", 2.5], None]
CODED_ROOM = 1 << 24  # for a million values that a few bytes may hold, and rows of them


def coded_example():
    tensors = example()[0] | {"sparse": random_tensor(5, (40, 30), 4, None)}
    tensors["sparse"].values[np.random.default_rng(6).random((40, 30)) < 0.9] = 0
    return tensors | {"zeros": quantized(np.zeros((300, 200), np.int8)), "one": np.bool_([True])}


def encode_coded(tensors):
    return encode(tensors, {}, {"note": "ü"}, graph=GRAPH, coded=True)


@pytest.mark.parametrize("tensors", [coded_example(), example()[0], {}], ids=["sparse", "any", "0"])
def test_coded_tensors_come_back(tensors):
    data = encode_coded(tensors)
    model = decode(data)
    assert (model.version, model.graph, model.file_bytes) == (3, GRAPH, len(data))
    assert_same_model(model, tensors | {}, {}, {"note": "ü"})
    again = encode(model.tensors, {}, model.metadata, graph=model.graph, coded=True)
    assert again == data
    header, sizes = data[6] & 127 | data[7] << 7 if data[6] > 127 else data[6], bytes_of(tensors)
    prefix = 6 + len(leb128(header)) + 1
    stored = sum(each.total for each in model.stored.values())
    assert len(data) == prefix + header + stored + 4
    assert all(model.stored[name].scales == sizes[name].scales for name in tensors)


def test_layout_of_version_3_is_the_documented_one():
    values = np.zeros((20, 10), np.int8)
    values[3, 4] = -5
    tensors = {"w": quantized(values, 0.5), "f": np.float32([1.5])}
    data = encode(tensors, {}, {}, graph=[1], coded=True)
    assert data[:6] == b"ROSL\3\0"
    header, payload = data[6], data[7]
    inflated = zlib.decompressobj(-15, zdict=WORDS).decompress(data[8 : 8 + header])
    assert inflated == b'[[1],{},[["w",4,null,20,10],["f","f4",null,1]]]'
    start = 8 + header + payload
    assert data[8 + header : start] == struct.pack("<Hf", 0x3F00, 1.5)
    (coded,) = _coding.decode(data[start:-4], [((20, 10), 7)])
    np.testing.assert_array_equal(coded.values, values)
    assert struct.unpack("<I", data[-4:])[0] == zlib.crc32(data[:-4])


V3 = Path(__file__).parent / "data_v3"


@pytest.mark.parametrize("path", sorted(V3.glob("*.rosler")), ids=lambda path: path.stem)
def test_version_3_files_hold_what_they_held(path):
    # Nets that were rate-coded on MNIST. If this fails, coding or WORDS changed: raise VERSION.
    expected = np.load(V3 / "integers.npz")
    tensors = load(path).tensors
    assert tensors
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor.values, expected[f"{path.stem}/{name}"])


def test_damage_to_coded_files_is_noticed():
    data = encode_coded(coded_example())
    for length in range(len(data)):
        with pytest.raises(ModelFileError, match=r"truncated|bad magic|checksum|size at byte"):
            decode(data[:length])
    assert_every_flipped_bit_is_noticed(data)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(data=st.data(), cut=st.integers(0, 3))
def test_damage_to_coded_files_with_a_correct_checksum(data, cut):
    damaged = bytearray(encode_coded(coded_example()))
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(4, len(damaged) - 5))] = data.draw(st.integers(0, 255))
    check_survives(resign(bytes(damaged[: len(damaged) - 100 * cut])), CODED_ROOM)


def forge_coded(header, payload=b"", stream=b"", sizes=None):
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=WORDS)
    stored = packer.compress(header) + packer.flush()
    sizes = bytes([len(stored), len(payload)]) if sizes is None else sizes
    return resign(b"ROSL\3\0" + sizes + stored + payload + stream + bytes(4))


ROW = b'[[],{},[["w",4,null,9]]]'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"ROSL\3\0\0\0\0\0\0", "truncated: 11 bytes, a model file has at least 12"),
        (b"ROSL\3\0\0\0\0\0\0\0", "checksum mismatch"),
        (forge_coded(b"[[],{},[]]", sizes=b"\x80\0\0"), "no size at byte 6"),
        (forge_coded(b"[[],{},[]]", sizes=b"\xff" * 9), "no size at byte 6"),
        (forge_coded(b"[[],{},[]]", sizes=b"\x7f\0"), "header and payload end at 135"),
        (forge_coded(b"[[],{},[]]", sizes=b"\1\0"), "does not inflate to the .* 1048576"),
        (forge_coded(b" " * 2**21, sizes=b"\xff\x0f\0"), "does not inflate to the .* 1048576"),
        (forge_coded(b"{}"), "not a JSON object of graph, meta, tensors"),
        (forge_coded(b"[[],{},[]]", b"", b"x"), "coded bytes do not end where"),
        (forge_coded(ROW, b"\x80\x3f", b"\x80"), "needs 7 bytes of payload, there are 2"),
        (forge_coded(b'[[],{},[["w",4,null,99999999]]]', b"\x80\x3f", b"\x7f"), "in 1 coded bytes"),
        (forge_coded(ROW, b"\x80\x3f", b"\x7f\xff\xff"), "the coded stream: 3 coded bytes"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_coded_file_is_said(data, message):
    with pytest.raises(ModelFileError, match=f"^some.rosler: .*{message}"):
        decode(data, name="some.rosler")


def test_tensors_alone_are_not_coded():
    with pytest.raises(ModelFileError, match="pass a graph"):
        encode({}, {}, {}, coded=True)


def check_survives(data, room=0):
    tracemalloc.start()
    try:
        model = decode(data)
    except ModelFileError:
        model = None
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 4 * modelfile.MAX_HEADER_BYTES + 100 * len(data) + room
    if model is not None:
        how = {"graph": model.graph, "coded": model.version == 3}
        again = decode(encode(model.tensors, model.spec, model.metadata, **how))
        assert_same_model(again, model.tensors, model.spec, model.metadata)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "bad magic"),
        (b"PK\x03\x04 and so on, long enough for a prefix", "bad magic b'PK"),
        (b"RO", "truncated: 2 bytes"),
        (resign(PREFIX.pack(b"ROSL", 4, 0, 0, 0, 0) + bytes(4)), "version 4 is newer than 3"),
        (resign(PREFIX.pack(b"ROSL", 1, 7, 0, 0, 0) + bytes(4)), "reserved field 7"),
        (PREFIX.pack(b"ROSL", 1, 0, 0, 0, 0) + b"\1\2\3\4", "checksum mismatch: stored 04030201"),
        (resign(PREFIX.pack(b"ROSL", 1, 0, 0, 5, 0) + bytes(4)), "does not inflate"),
        (PREFIX.pack(b"ROSL", 1, 0, 0, 0, 2**63) + bytes(4), "truncated: 28 bytes of"),
        (forge(b"not json"), "header is not JSON"),
        (forge(b"\xff\xfe"), "header is not JSON"),
        (forge(b"[" * 100_000), "header is not JSON"),
        (forge(b'{"spec":{"a":NaN},"meta":{},"tensors":[]}'), "NaN is not JSON"),
        (forge(b'{"spec":{"a":' + b"9" * 5000 + b'},"meta":{},"tensors":[]}'), "not JSON"),
        (forge([]), "not a JSON object of spec, meta, tensors"),
        (forge({"spec": {}, "meta": {}}), "not a JSON object of spec, meta, tensors"),
        (forge({"spec": [], "meta": {}, "tensors": []}), "'spec' is not a JSON dict"),
        (forge(b"{}", announced=1), "does not inflate to the announced or allowed 1 bytes"),
        (forge(b"{}", announced=3), "does not inflate to the announced 3 bytes"),
        (forge(b" " * 2**21), "header of 2097152 bytes, at most 1048576"),
        (forge(b" " * 2**21, announced=100), "does not inflate to the announced or allowed 100"),
        (forge_rows([["w", 5, None, 2]]), "'w': unknown bits or dtype 5"),
        (forge_rows([["w", "O", None, 2]]), "'w': unknown bits or dtype 'O'"),
        (forge_rows([["w", True, None, 2]]), "'w': unknown bits or dtype True"),
        (forge_rows([["w", "f4", 0, 2]], bytes(8)), "axis 0 does not fit"),
        (forge_rows([["w", 4, 1, 2]]), "axis 1 does not fit"),
        (forge_rows([["w", 4, None, -2]]), "is not at most 8 sizes"),
        (forge_rows([["w", 4, None, 2.0]]), "is not at most 8 sizes"),
        (forge_rows([["w", 4, None, *[1] * 9]]), "is not at most 8 sizes"),
        (forge_rows([["w", 4, None, 2**40, 2**40]]), "has more than 1099511627776 elements"),
        (forge_rows([["w", 4, None, 0, 2**40, 2**40]]), "has more than 1099511627776 elements"),
        (forge_rows([["w", 4, None, 2**39]]), "needs 274877906946 bytes of payload, there are 0"),
        (forge_rows([["w", 4, 0, 2**39, 0]]), "bytes of payload, there are 0"),
        (forge_rows([], b"x"), "needs 0 bytes of payload, there are 1"),
        (forge_rows([["w", "u1", None, 1]] * 2, b"xx"), "two tensors are named 'w'"),
        (forge_rows([["", "u1", None, 1]], b"x"), "not a non-empty string"),
        (forge_rows([["w", "u1"]], b"x"), r"is not \[name, bits, axis"),
        (forge_rows([["w", 4, None, 1]], b"\0\0\1"), "'w': a scale is not positive"),
        (forge_rows([["w", 4, None, 1]], b"\x80\x7f\1"), "'w': a scale is not positive"),
        (forge_rows([["w", 4, None, 1]], b"\x80\x3f\x18"), "'w': the filling bits"),
        (forge_rows([["w", 4, None, 1]], b"\x80\x3f\x08"), "'w': a 4-bit value lies below -7"),
        (forge_rows([["w", 8, None, 1]], b"\x80\x3f\x80"), "'w': a 8-bit value lies below -127"),
        (forge_rows([["w", "f4", None, 1]], b"\0\0\xc0\x7f"), "'w' holds NaN"),
        (forge_rows([["w", 32, None, 1]], b"\0\0\xc0\x7f"), "'w' holds NaN"),
    ],
)
def test_what_is_wrong_is_said(data, message):
    with pytest.raises(ModelFileError, match=f"^some.rosler: .*{message}"):
        decode(data, name="some.rosler")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (np.array(["a"]), "'w' has dtype <U1, expected one of f2"),
        (np.array([object()]), "'w' has dtype object"),
        (np.array([True]), "'w' has dtype bool"),
        (np.array([np.inf], np.float32), "'w' holds NaN or infinity"),
        (quantized(np.int8([-8])), r"not integers within \+-7"),
        (quantized(np.int16([-32768]), bits=16), r"not integers within \+-32767"),
        (quantized(np.int8([-128]), bits=8), r"not integers within \+-127"),
        (quantized(np.float32([1])), r"not integers within \+-7"),
        (quantized(np.int8([1]), np.nan), "scales must be positive and finite"),
        (quantized(np.int8([1]), 0.0), "scales must be positive and finite"),
        (quantized(np.int8([1]), 0.1), "a scale is not a bfloat16 number"),
        (quantized(np.int8([1]), [1.0, 1.0], axis=0), r"has scales of shape \(2,\)"),
        (quantized(np.int8([1]), 1.0, axis=3), "along axis 3"),
        (quantized(np.int8([1]), bits=5), "unknown bits or dtype 5"),
        (quantized(np.float32([np.nan]), bits=32), "'w' holds NaN or infinity"),
    ],
)
def test_what_cannot_be_written_is_said(tensor, message, tmp_path):
    path = tmp_path / "model.rosler"
    with pytest.raises(ModelFileError, match=message):
        save(path, {"w": tensor}, {}, {})
    assert os.listdir(tmp_path) == []


def test_random_keys_and_bad_headers_are_refused():
    import jax

    with pytest.raises(ModelFileError, match=r"key_data|not an array"):
        encode({"key": jax.random.key(0)}, {}, {})
    with pytest.raises(ModelFileError, match="JSON with string keys"):
        encode({}, {"a": object()}, {})
    with pytest.raises(ModelFileError, match="JSON with string keys"):
        encode({}, {}, {"a": float("nan")})
    with pytest.raises(ModelFileError, match="at most 1048576 are allowed"):
        encode({}, {"a": "x" * 2**20}, {})
    with pytest.raises(ModelFileError, match="not a non-empty string"):
        encode({0: np.ones(2)}, {}, {})


def test_numpy_scalars_in_the_header_become_json():
    model = decode(encode({}, {"rank": np.int64(8)}, {"accuracy": np.float32(0.5)}))
    assert model.spec == {"rank": 8} and model.metadata == {"accuracy": 0.5}


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.rosler"
    save(path, {}, {"old": 1}, {})

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(modelfile.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        save(path, {}, {"new": 1}, {})
    assert load(path).spec == {"old": 1}
    assert os.listdir(tmp_path) == ["model.rosler"]


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent.rosler")


def test_loads_without_jax(tmp_path):
    tensors, spec, metadata = example()
    path = tmp_path / "model.rosler"
    save(path, tensors, spec, metadata)
    source = Path(modelfile.__file__).parent
    # An empty package object stands for rosler_jax, whose __init__ may import what it likes.
    program = f"""
        import sys, types
        sys.modules["jax"] = sys.modules["flax"] = None  # importing them raises
        package = types.ModuleType("rosler_jax")
        package.__path__ = [{str(source)!r}]
        sys.modules["rosler_jax"] = package
        from rosler_jax import modelfile
        model = modelfile.load({str(path)!r})
        print(modelfile.to_numpy(model.tensors["head"]).sum())
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )
    assert float(ran.stdout) == pytest.approx(float(to_numpy(tensors["head"]).sum()), rel=1e-6)

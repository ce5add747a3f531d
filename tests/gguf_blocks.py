"""Blocks of every type of GGUF that is read, written by hand, and the numbers that they stand for.

Laid out and computed as in llama.cpp's ggml-quants.c, number by number.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

TABLE = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the numbers of IQ4 stand for."""

NIBBLES = bytes(i | (15 - i) << 4 for i in range(16))
COUNTED = [*range(16), *reversed(range(16))]
"""The 32 numbers in NIBBLES."""

Block = tuple[bytes, list[float]]


def halves(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}e", *values)


def q4_0() -> Block:
    return halves(-0.5) + NIBBLES, [-0.5 * (q - 8) for q in COUNTED]


def q4_1() -> Block:
    return halves(0.3, -1.7) + NIBBLES, [half(0.3) * q + half(-1.7) for q in COUNTED]


def half(value: float) -> float:
    return float(struct.unpack("<e", struct.pack("<e", value))[0])


def q5_0() -> Block:
    high = [i % 3 == 0 for i in range(32)]
    bits = sum(bit << i for i, bit in enumerate(high))
    return halves(2.0) + struct.pack("<I", bits) + NIBBLES, [
        2.0 * ((q | bit << 4) - 16) for q, bit in zip(COUNTED, high, strict=True)
    ]


def q5_1() -> Block:
    high = [i % 5 == 0 for i in range(32)]
    bits = sum(bit << i for i, bit in enumerate(high))
    return halves(0.25, 3.0) + struct.pack("<I", bits) + NIBBLES, [
        0.25 * (q | bit << 4) + 3.0 for q, bit in zip(COUNTED, high, strict=True)
    ]


def q8_0() -> Block:
    numbers = [-128, 127, *range(-60, 60, 4)]
    return halves(0.25) + struct.pack("<32b", *numbers), [0.25 * q for q in numbers]


def q2_k() -> Block:
    scales, minima = list(range(16)), list(reversed(range(16)))
    packed = bytes(scale | minimum << 4 for scale, minimum in zip(scales, minima, strict=True))
    data = packed + bytes([0b11100100] * 64) + halves(0.5, 0.25)  # number j after j shifts
    return data, [0.5 * scales[i // 16] * (i // 32 % 4) - 0.25 * minima[i // 16] for i in range(256)]


def q3_k() -> Block:
    scales = [group * 5 % 64 for group in range(16)]
    low = bytes((scales[i] & 15) | (scales[i + 8] & 15) << 4 for i in range(8))
    high = bytes(sum((scales[i + 4 * j] >> 4) << 2 * j for j in range(4)) for i in range(4))
    mask = bytes((0xFF, 0x00, 0x5A, 0xC3)[i % 4] for i in range(32))

    def number(i: int) -> int:
        bit = mask[i % 32] >> i // 32 & 1
        return i // 32 % 4 - (0 if bit else 4)

    data = mask + bytes([0b11100100] * 64) + low + high + halves(0.5)
    return data, [0.5 * (scales[i // 16] - 32) * number(i) for i in range(256)]


SCALES, MINIMA = [1, 7, 63, 32, 48, 15, 16, 33], [62, 0, 5, 31, 17, 63, 2, 40]


def k_scales() -> bytes:
    """Return 6 bits each of SCALES and MINIMA."""
    first = bytes(SCALES[i] | (SCALES[i + 4] >> 4) << 6 for i in range(4))
    second = bytes(MINIMA[i] | (MINIMA[i + 4] >> 4) << 6 for i in range(4))
    third = bytes((SCALES[i + 4] & 15) | (MINIMA[i + 4] & 15) << 4 for i in range(4))
    return first + second + third


def k_nibble(i: int) -> int:
    return i % 16 if i // 32 % 2 == 0 else 15 - i % 16


def q4_k() -> Block:
    data = halves(0.5, 0.25) + k_scales() + NIBBLES * 8
    return data, [0.5 * SCALES[i // 32] * k_nibble(i) - 0.25 * MINIMA[i // 32] for i in range(256)]


def q5_k() -> Block:
    high = bytes(i * 37 % 256 for i in range(32))
    data = halves(0.5, 0.25) + k_scales() + high + NIBBLES * 8

    def number(i: int) -> int:
        return k_nibble(i) | (high[i % 32] >> i // 32 & 1) << 4

    return data, [0.5 * SCALES[i // 32] * number(i) - 0.25 * MINIMA[i // 32] for i in range(256)]


def q6_k() -> Block:
    low, high = bytes(i * 29 % 256 for i in range(128)), bytes(i * 53 % 256 for i in range(64))
    scales = [i * 17 - 128 for i in range(16)]

    def number(i: int) -> int:
        part, quarter, place = i // 128, i % 128 // 32, i % 32
        octet = low[64 * part + place + 32 * (quarter % 2)]
        nibble = octet & 15 if quarter < 2 else octet >> 4
        return (nibble | (high[32 * part + place] >> 2 * quarter & 3) << 4) - 32

    data = low + high + struct.pack("<16b", *scales) + halves(0.125)
    return data, [0.125 * scales[i // 16] * number(i) for i in range(256)]


def iq4_nl() -> Block:
    return halves(0.5) + NIBBLES, [0.5 * TABLE[q] for q in COUNTED]


def iq4_xs() -> Block:
    scales = SCALES
    high = sum((scale >> 4) << 2 * i for i, scale in enumerate(scales))
    low = bytes((scales[2 * i] & 15) | (scales[2 * i + 1] & 15) << 4 for i in range(4))
    data = halves(0.25) + struct.pack("<H", high) + low + NIBBLES * 8
    return data, [0.25 * (scales[i // 32] - 32) * TABLE[COUNTED[i % 32]] for i in range(256)]


def f32() -> Block:
    values = [0.1, -3e38, 1e-42, -0.0]
    return struct.pack("<4f", *values), list(struct.unpack("<4f", struct.pack("<4f", *values)))


def f16() -> Block:
    values = [0.1, -65504.0, 2.0**-24, -0.0]
    return halves(*values), list(map(half, values))


def bf16() -> Block:
    bits = [0x3F80, 0xC2F7, 0x0001, 0x8000]
    widened = [struct.unpack("<f", struct.pack("<I", each << 16))[0] for each in bits]
    return struct.pack("<4H", *bits), widened


BLOCKS: dict[str, Callable[[], Block]] = {
    "Q4_0": q4_0,
    "Q4_1": q4_1,
    "Q5_0": q5_0,
    "Q5_1": q5_1,
    "Q8_0": q8_0,
    "Q2_K": q2_k,
    "Q3_K": q3_k,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
    "IQ4_NL": iq4_nl,
    "IQ4_XS": iq4_xs,
    "F32": f32,
    "F16": f16,
    "BF16": bf16,
}

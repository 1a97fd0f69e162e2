"""The QR code as a matrix of modules, versions 1 to 6 with error correction H (ISO/IEC 18004)."""

from __future__ import annotations

import functools

import numpy as np
import qrcode
from numpy.typing import NDArray
from qrcode.constants import ERROR_CORRECT_H
from qrcode.util import MODE_8BIT_BYTE, QRData

Modules = NDArray[np.bool_]

VERSIONS = range(1, 7)
# Bytes that fit into a code of each version: its data codewords less the 12 bits of mode and length.
_ROOM = {1: 7, 2: 14, 3: 24, 4: 34, 5: 44, 6: 58}
# A reader wants four light modules around a code; three pixels a module are plenty where none is blurred.
_QUIET, _SCALE = 4, 3


def side(version: int) -> int:
    """How many modules a code of this version has in a row."""
    return 17 + 4 * version


def room(version: int) -> int:
    """How many bytes of text fit into it."""
    return _ROOM[version]


def encode(text: str, version: int, mask: int) -> Modules:
    """The code of a text of at most `room(version)` bytes in UTF-8, True for a light module, shape (side, side).

    Args:
        text: what a reader gives back.
        version: 1 to 6.
        mask: the data mask pattern, 0 to 7.

    Raises:
        ValueError: the text is too long.
    """
    content = text.encode()
    if len(content) > room(version):
        raise ValueError(f"expected at most {room(version)} bytes in version {version}, got {len(content)}")
    return _of_bytes(content, version, mask)


def encode_all(contents: NDArray[np.uint8], version: int, mask: int) -> Modules:
    """The codes of many texts of one length, (N, length) bytes to (N, side, side); the same as `encode` gives.

    Reed-Solomon codes are linear, so a code is that of zeros with what each bit that is set turns over.
    """
    zero, turned = _linear(contents.shape[1], version, mask)
    bits = np.unpackbits(contents, axis=1)
    # Sums of at most 464 ones are exact in float32, for which there is a fast product.
    odd = (bits.astype(np.float32) @ turned).astype(np.int64) & 1
    codes: Modules = zero ^ odd.astype(bool).reshape(-1, *zero.shape)
    return codes


def _of_bytes(content: bytes, version: int, mask: int) -> Modules:
    code = qrcode.QRCode(version, ERROR_CORRECT_H, border=0, mask_pattern=mask)
    # As bytes whatever they are: a shorter mode for digits would give codes of another structure.
    code.add_data(QRData(content, mode=MODE_8BIT_BYTE))
    code.make(fit=False)
    return ~np.array(code.modules, dtype=bool)


@functools.lru_cache(maxsize=8)
def _linear(length: int, version: int, mask: int) -> tuple[Modules, NDArray[np.float32]]:
    """The code of `length` bytes of zero, and 1 where each of their bits changes it, (8 * length, side * side)."""
    units = np.packbits(np.eye(8 * length, dtype=np.uint8), axis=1)
    zero = _of_bytes(bytes(length), version, mask)
    turned = np.stack([_of_bytes(unit.tobytes(), version, mask) ^ zero for unit in units])
    return zero, turned.reshape(len(units), -1).astype(np.float32)


@functools.cache
def function_patterns(version: int) -> Modules:
    """Which modules are the same whatever the text: True in finders with separators, timing, alignment, format.

    For versions 2 to 6 there is one alignment pattern; the dark module counts with the format information.
    """
    n = side(version)
    fixed = np.zeros((n, n), dtype=bool)
    fixed[6, :] = fixed[:, 6] = True
    # A finder of 7 x 7 with its separator, and the format information along it.
    fixed[:9, :9] = fixed[:9, -8:] = fixed[-8:, :9] = True
    if version > 1:
        fixed[n - 9 : n - 4, n - 9 : n - 4] = True
    fixed.setflags(write=False)
    return fixed


@functools.cache
def restored_by_released_code() -> Modules:
    """The 290 modules of version 3 that the released code leaves out: 16 data modules more than the standard has."""
    left = np.zeros((29, 29), dtype=bool)
    left[0:9, 0:9] = left[-9:, 0:9] = left[0:9, -9:] = left[20:25, 20:25] = True
    left[6, :] = left[:, 6] = True
    left.setflags(write=False)
    return left


def completed(data: Modules, version: int, mask: int) -> Modules:
    """The matrix with the function patterns of the standard in their places; the rest as given."""
    return np.where(function_patterns(version), encode("", version, mask), data)


def decode(modules: Modules) -> str | None:
    """The text that a reader finds in a matrix, after Reed-Solomon correction; None where it finds none.

    Raises:
        RuntimeError: the reader is not installed.
    """
    try:
        import zxingcpp
    except ImportError as error:
        raise RuntimeError("reading QR codes needs the package zxing-cpp: pip install zxing-cpp") from error
    framed = np.pad(modules, _QUIET, constant_values=True)
    image = np.kron(framed, np.ones((_SCALE, _SCALE), dtype=bool)).astype(np.uint8) * 255
    # The matrix is straight and alone in the image; searching for codes would only find other ones in noise.
    formats = zxingcpp.barcode_formats_from_str("QRCode")
    found = zxingcpp.read_barcodes(image, formats=formats, try_rotate=False, try_downscale=False, is_pure=True)
    return next((str(code.text) for code in found if code.valid), None)

""".npy files of strangers: the header is judged before anything is allocated, and nothing is ever unpickled."""

import io
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldloom.stages.rejects import InputRejected


def read_npy(content: bytes, most: int, code: str) -> NDArray[Any]:
    """The array of an .npy file of at most `most` bytes of data; InputRejected: `code`, or type_mismatch for another file."""
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise InputRejected("type_mismatch", f"an .npy file of version {version}; 1.0 and 2.0 are read")
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = reader(stream)
    except InputRejected:
        raise
    except Exception as error:  # numpy's parser of headers lets anything out
        raise InputRejected(
            "type_mismatch", f"not an .npy file: {str(error).splitlines()[0][:120] if str(error) else 'no header'}"
        ) from None
    if dtype.hasobject or dtype.names:
        raise InputRejected(code, f"an array of plain numbers is expected, not of {dtype}")
    size = prod(shape) * dtype.itemsize
    if size > most:
        raise InputRejected(code, f"the header claims {size} bytes, at most {most}")
    if len(content) - stream.tell() != size:
        raise InputRejected(code, f"the header claims {size} bytes, {len(content) - stream.tell()} follow")
    values = np.frombuffer(content, dtype, count=prod(shape), offset=stream.tell())
    return values.reshape(shape, order="F" if fortran else "C")


def write_npy(value: NDArray[Any]) -> bytes:
    """The same array gives the same bytes."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(value), version=(1, 0), allow_pickle=False)
    return stream.getvalue()

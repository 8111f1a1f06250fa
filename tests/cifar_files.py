"""Batches of CIFAR as its authors, and all versions of pickle, write them."""

import pickle
import struct

import numpy as np

RNG = np.random.default_rng(0)


def rows(count, side=32):
    return RNG.integers(0, 256, (count, 3 * side * side), dtype=np.uint8)


def python_2_pickle(data, labels, key=b"labels"):
    """What cPickle of Python 2 with its numpy writes, as in the original files."""

    def short(text, index):
        return b"U" + bytes([len(text)]) + text + b"q" + bytes([index])

    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85q\x05"
    array += short(b"b", 6) + b"\x87Rq\x07(K\x01"
    array += b"".join(b"M" + struct.pack("<H", size) for size in data.shape) + b"\x86q\x08"
    array += b"cnumpy\ndtype\nq\x09" + short(b"u1", 10) + b"K\x00K\x01\x87Rq\x0b(K\x03"
    array += short(b"|", 12) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    content = data.tobytes()
    array += b"T" + struct.pack("<i", len(content)) + content + b"q\x0dtb"
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    return (
        b"\x80\x02}q\x01("
        + short(b"data", 2)
        + array
        + short(key, 14)
        + b"]q\x0f("
        + numbers
        + b"e"
        + short(b"batch_label", 16)
        + short(b"training batch 1 of 5", 17)
        + b"u."
    )


def of_protocol(protocol, text=False, renamed=False, convert=list):
    def write(data, labels, key=b"labels"):
        batch = {b"data": data, key: convert(labels), b"batch_label": b"one"}
        if text:
            batch = {name.decode(): value for name, value in batch.items()}
        written = pickle.dumps(batch, protocol)
        # protocol 2 ends names with a line, so that they may change in length
        return written.replace(b"numpy._core", b"numpy.core") if renamed else written

    return write


WRITERS = {
    "python 2": python_2_pickle,
    **{f"protocol {p}": of_protocol(p) for p in range(2, 6)},
    "numpy 1": of_protocol(2, renamed=True),
    "text keys": of_protocol(4, text=True),
    "label array": of_protocol(4, convert=np.array),
    "big-endian label array": of_protocol(4, convert=lambda y: np.array(y, ">i4")),
    "bytes labels": of_protocol(4, convert=lambda y: np.array(y, np.uint8)),
    "columns": lambda data, labels, key=b"labels": of_protocol(5)(
        np.asfortranarray(data), labels, key
    ),
}

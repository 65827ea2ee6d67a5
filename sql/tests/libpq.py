"""Reads connection strings as libpq does: JSON strings in, one a line; JSON objects or null for an error out."""

import ctypes
import ctypes.util
import json
import sys


class Option(ctypes.Structure):
    _fields_ = [
        ("keyword", ctypes.c_char_p),
        ("envvar", ctypes.c_char_p),
        ("compiled", ctypes.c_char_p),
        ("val", ctypes.c_char_p),
        ("label", ctypes.c_char_p),
        ("dispchar", ctypes.c_char_p),
        ("dispsize", ctypes.c_int),
    ]


libpq = ctypes.CDLL(sys.argv[1] if len(sys.argv) > 1 else "libpq.so.5")
libpq.PQconninfoParse.restype = ctypes.POINTER(Option)
libpq.PQconninfoParse.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p)]

for line in sys.stdin:
    problem = ctypes.c_void_p()
    options = libpq.PQconninfoParse(json.loads(line).encode(), ctypes.byref(problem))
    if not options:
        print("null")
        continue
    values = {}
    index = 0
    while options[index].keyword:
        if options[index].val is not None:
            values[options[index].keyword.decode()] = options[index].val.decode()
        index += 1
    print(json.dumps(values))

#!/usr/bin/env python3
"""Mooncake Store for `kvf bench rivals`: a holder of objects in one process, a reader in another, over TCP.

    mooncake_store.py hold MASTER-PORT BYTES     holds a segment until standard input ends
    mooncake_store.py read MASTER-PORT BYTES     obeys lines of standard input, answers each with a line of JSON:
        put SIZE COUNT            stores COUNT objects of SIZE bytes
        get SIZE COUNT BATCH S    reads them in random order, BATCH per call, for S seconds, and verifies the bytes of each once
        drop SIZE COUNT           removes them

Both print a line "ready" (or {"error": ...}) first. The package is the wheel of Mooncake without CUDA.
"""
import json
import mmap
import random
import sys
import time


def store(port, segment, local):
    from mooncake.store import MooncakeDistributedStore
    s = MooncakeDistributedStore()
    code = s.setup("127.0.0.1", "P2PHANDSHAKE", segment, local, "tcp", "", f"127.0.0.1:{port}")
    if code:
        raise RuntimeError(f"setup of the store failed with {code}")
    return s


def name(size, i):
    return f"kvf-{size}-{i}"


def content(size, i):
    word = (i * 0x9E3779B97F4A7C15 + size) & (2**64 - 1)
    return word.to_bytes(8, "little") * (size // 8)


class Reader:
    def __init__(self, port, room):
        import ctypes
        self.memory = mmap.mmap(-1, room)
        self.room = room
        self.at = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.store = store(port, 0, 256 << 20)
        if self.store.register_buffer(self.at, room):
            raise RuntimeError("the buffer could not be registered")

    def put(self, size, count):
        for i in range(count):
            self.memory[0:size] = content(size, i)
            code = self.store.put_from(name(size, i), self.at, size)
            if code:
                raise RuntimeError(f"put of object {i} of {size} bytes failed with {code}")
        return {"objects": count}

    def read(self, size, ids):
        n = len(ids)
        got = self.store.batch_get_into([name(size, i) for i in ids], [self.at + k * size for k in range(n)], [size] * n)
        return sum(1 for g in got if g != size)

    def get(self, size, count, batch, seconds):
        batch = min(batch, self.room // size)
        wrong = missing = 0
        for first in range(0, count, batch):
            ids = list(range(first, min(first + batch, count)))
            self.memory[0:len(ids) * size] = bytes(len(ids) * size)
            missing += self.read(size, ids)
            for k, i in enumerate(ids):
                wrong += self.memory[k * size:(k + 1) * size] != content(size, i)
        generator, times, objects = random.Random(1), [], 0
        begin = now = time.perf_counter()
        while now - begin < seconds:
            missing += self.read(size, [generator.randrange(count) for _ in range(batch)])
            end = time.perf_counter()
            times.append(end - now)
            now, objects = end, objects + batch
        times.sort()
        return {"objects": objects, "batch": batch, "seconds": now - begin, "wrong": wrong, "missing": missing,
                "call_p50_us": times[len(times) // 2] * 1e6, "call_p99_us": times[len(times) * 99 // 100] * 1e6}

    def drop(self, size, count):
        for i in range(count):
            self.store.remove(name(size, i))
        return {"objects": count}

    def obey(self, line):
        word, *numbers = line.split()
        numbers = [float(n) if "." in n else int(n) for n in numbers]
        return {"put": self.put, "get": self.get, "drop": self.drop}[word](*numbers)


def main():
    role, port, room = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    # The library prints to standard output too: answers go to a copy of it, everything else to standard error.
    import os
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        me = store(port, room, 16 << 20) if role == "hold" else Reader(port, room)
        print("ready", file=out)
        for line in sys.stdin:
            if role == "read":
                print(json.dumps(me.obey(line)), file=out)
    except Exception as error:
        print(json.dumps({"error": str(error)}), file=out)
        return 1
    (me if role == "hold" else me.store).close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

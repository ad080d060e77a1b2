# SPDX-License-Identifier: Apache-2.0
"""The qcow2 path by itself: one image through qcow2-path.c (our block layer, no device above it) and
through qemu-img bench, and the part of the file that has the data as a raw disk through ours."""

import json
import os
import tempfile

from block_path import calls_per_request, make_file, rate
from core import Group, Unavailable, helper, need, run

NAME = "qcow2-path"
ABOUT = "a qcow2 image against our raw and against qemu-img bench: 4 KiB, 1 MiB, first writes"
RUNS = 9

FILE_MIB = 512
RAW, OURS, QEMU = "corral, raw", "corral, qcow2", "qemu-img bench, qcow2"
CALLS = "system calls per 4 KiB read"
CLUSTER = 65536
FRESH_MIB = 2048
# Each block once before any twice, no two neighbours near one another.
STEP = (int(FILE_MIB * 256 * 0.618) // 2 * 2 + 1) * 4096


class Work:
    """One kind of request; what is measured of it is requests per second."""

    def __init__(self, what, kind, requests, depth, size, step, warm=True):
        self.what, self.kind, self.warm = what, kind, warm
        self.requests, self.depth, self.size, self.step = requests, depth, size, step

    def ours(self, image, requests=None):
        return [helper("qcow2-path"), "qcow2", image.path, self.kind, str(requests or self.requests), str(self.depth),
                str(self.size), str(self.step)]

    def raw(self, image, requests=None):
        command = self.ours(image, requests) + [str(image.data), str(FILE_MIB << 20)]
        return [command[0], "raw"] + command[2:]

    def peer(self, image, requests=None):
        command = [need("qemu-img", "qemu-utils"), "bench", "-c", str(requests or self.requests), "-d", str(self.depth),
                   "-s", str(self.size), "-S", str(self.step), "-f", "qcow2", "-t", "writeback", "-i", "io_uring"]
        return command + (["-w"] if self.kind == "write" else []) + [image.path]

    def measure(self, group, who, command, pattern):
        """Twice: the first has pages to make dirty, or to read."""
        for _ in range(2 if self.warm else 1):
            found = rate(command, self.requests, pattern)
        group.add(self.what, "k/s", who, found)

    def measure_ours(self, group, image):
        self.measure(group, OURS, self.ours(image), r"seconds ([\d.]+)")

    def measure_raw(self, group, image):
        self.measure(group, RAW, self.raw(image), r"seconds ([\d.]+)")

    def measure_peer(self, group, image):
        self.measure(group, QEMU, self.peer(image), r"completed in ([\d.]+) seconds")


READS = Work("4 KiB reads", "read", 200_000, 32, 4096, STEP)
WRITES = Work("4 KiB writes", "write", 30_000, 32, 4096, STEP)
LONG_READS = Work("1 MiB reads", "read", 1000, 8, 1 << 20, 1 << 20)
LONG_WRITES = Work("1 MiB writes", "write", 500, 8, 1 << 20, 1 << 20)
FIRST_WRITES = Work("first 4 KiB writes to clusters", "write", 20_000, 32, 4096, CLUSTER, warm=False)


class Image:
    """`data`: where the disk is in the file, in one piece."""

    def __init__(self, path, data=0):
        self.path, self.data = path, data


def make_image(directory):
    plain, image = os.path.join(directory, "plain"), Image(os.path.join(directory, "disk.qcow2"))
    make_file(plain)
    run([need("qemu-img", "qemu-utils"), "convert", "-f", "raw", "-O", "qcow2", plain, image.path])
    os.unlink(plain)
    found = json.loads(run(["qemu-img", "map", "-f", "qcow2", "--output=json", image.path]))
    if len(found) != 1:
        raise Unavailable(f"the image's data is in {len(found)} pieces of its file")
    image.data = found[0]["offset"]
    return image


def make_fresh(image):
    run([need("qemu-img", "qemu-utils"), "create", "-q", "-f", "qcow2", image.path, f"{FRESH_MIB}M"])


def in_turn(ways, i):
    """Nobody is always the first, or always behind the same."""
    for way in ways[i % len(ways):] + ways[:i % len(ways)]:
        way()


def measure_mapped(group, work, image, i):
    in_turn([lambda: work.measure_raw(group, image), lambda: work.measure_ours(group, image),
             lambda: work.measure_peer(group, image)], i)


def measure_first(group, image, i):
    def anew(measure):
        make_fresh(image)
        measure(group, image)
        os.unlink(image.path)

    in_turn([lambda: anew(FIRST_WRITES.measure_ours), lambda: anew(FIRST_WRITES.measure_peer)], i)


def bars(group):
    for work, of_raw, of_qemu in ((READS, 0.95, 1.2), (WRITES, 0.95, 1.2), (LONG_READS, 0.95, 0.95),
                                  (LONG_WRITES, 0.95, 0.95), (FIRST_WRITES, None, 1.0)):
        ours = group.median(work.what, OURS)
        if of_raw:
            group.bar(f"{work.what}, of our raw's", ">=", of_raw, ours / group.median(work.what, RAW))
        group.bar(f"{work.what}, of qemu-img bench's", ">=", of_qemu, ours / group.median(work.what, QEMU),
                  line=(work.what, of_qemu * group.median(work.what, QEMU)))


def count(group, image, directory):
    ways = ((QEMU, READS.peer), (RAW, READS.raw), (OURS, READS.ours))
    try:
        for who, command in ways:
            group.add(CALLS, "", who, calls_per_request(command, image, directory))
    except Unavailable as why:
        group.lacks(f"system calls were not counted: {why}")
        return
    group.bar(f"{CALLS} at depth {READS.depth}", "<=", 0.2, group.median(CALLS, OURS), line=(CALLS, 0.2))


def measure_in(group, runs, directory):
    image, fresh = make_image(directory), Image(os.path.join(directory, "fresh.qcow2"))
    for i in range(runs):
        group.progress(i, runs)
        for work in (READS, LONG_READS, WRITES, LONG_WRITES):
            measure_mapped(group, work, image, i)
        measure_first(group, fresh, i)
    bars(group)
    count(group, image, directory)


def measure(runs, _directory):
    group = Group(NAME, "qcow2 path: an image against its raw file and against QEMU")
    group.method = [
        f"A qcow2 image of {FILE_MIB} MiB of random bytes in {CLUSTER // 1024} KiB clusters, in the page cache, "
        "buffered, through io_uring, one thread that submits, taking turns in each order: ours qcow2, qemu-img bench, "
        "and ours raw, which takes the part of the same file that has the data as its disk: how a file lies in the "
        "page cache makes more of a difference than a format. None has a device above it; each has one buffer for "
        "all requests. Each run is done twice and the second counts.",
        f"4 KiB: {READS.depth} at a time, stepping by {STEP} bytes through the whole disk. 1 MiB: one after the other, "
        f"{LONG_READS.depth} at a time; there the kernel's copying is nearly all, so the bar to QEMU is 0.95.",
        f"First writes: 4 KiB to the beginning of each cluster of an empty image, made anew for each run, "
        f"{FIRST_WRITES.depth} at a time; no flush, with either.",
        "System calls are counted by the kernel in runs of their own, of 50000 and 150000 reads: the difference, "
        "per read.",
    ]
    with tempfile.TemporaryDirectory(prefix="corral-bench-") as directory:
        measure_in(group, runs, directory)
    return group

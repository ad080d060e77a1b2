# SPDX-License-Identifier: Apache-2.0
"""The block path by itself: 4 KiB reads of a file in the page cache, 32 at a time. block-path.c is
our virtqueue, device, image and ring with a driver in the guest's place; QEMU's is qemu-img bench."""

import os
import re
import tempfile

from core import SYSTEM_CALL, Group, Unavailable, count_events, helper, need, run

NAME = "block-path"
ABOUT = "4 KiB reads per second and system calls a read, against qemu-img bench -i io_uring"
RUNS = 5

FILE_MIB = 512
DEPTH, SIZE = 32, 4096
REQUESTS = 400_000
COUNTED = (50_000, 150_000)
RATE, CALLS = "reads", "system calls per read"
OURS, QEMU = "corral", "qemu-img bench"
# Each block once before any twice, no two neighbours near one another: an odd number of blocks near
# the golden section of the file.
STEP = int(FILE_MIB * 256 * 0.618) // 2 * 2 + 1


def make_file(path):
    with open(path, "wb") as file:
        for _ in range(FILE_MIB):
            file.write(os.urandom(1 << 20))
    with open(path, "rb") as file:
        while file.read(1 << 20):
            pass


def ours(path, requests):
    return [helper("block-path"), path, str(requests), str(DEPTH), str(SIZE)]


def peer(path, requests):
    return [need("qemu-img", "qemu-utils"), "bench", "-c", str(requests), "-d", str(DEPTH), "-s", str(SIZE),
            "-S", str(STEP * SIZE), "-f", "raw", "-t", "writeback", "-i", "io_uring", path]


def rate(command, requests, pattern):
    found = re.search(pattern, run(command))
    if not found:
        raise Unavailable(f"\"{command[0]}\" printed no time")
    return requests / float(found[1]) / 1e3


def calls_per_request(command, path, directory):
    """What a program calls at its start is in both counts and falls out."""
    counts = []
    for requests in COUNTED:
        found, _ = count_events([SYSTEM_CALL], command(path, requests), os.path.join(directory, "events"))
        counts.append(found[SYSTEM_CALL])
    return (counts[1] - counts[0]) / (COUNTED[1] - COUNTED[0])


def count(group, path, directory):
    try:
        for who, command in ((QEMU, peer), (OURS, ours)):
            group.add(CALLS, "", who, calls_per_request(command, path, directory))
    except Unavailable as why:
        group.lacks(f"system calls were not counted: {why}")
        return
    group.bar(f"system calls per read at depth {DEPTH}", "<=", 0.2, group.median(CALLS, OURS), line=(CALLS, 0.2))


def measure_in(group, runs, directory):
    path = os.path.join(directory, "disk")
    make_file(path)
    for i in range(runs):
        group.progress(i, runs)
        group.add(RATE, "k/s", QEMU, rate(peer(path, REQUESTS), REQUESTS, r"completed in ([\d.]+) seconds"))
        group.add(RATE, "k/s", OURS, rate(ours(path, REQUESTS), REQUESTS, r"seconds ([\d.]+)"))
    group.bar("reads per second, of qemu-img bench's", ">=", 1.2, group.median(RATE, OURS) / group.median(RATE, QEMU),
              line=(RATE, 1.2 * group.median(RATE, QEMU)))
    count(group, path, directory)


def measure(runs, _directory):
    group = Group(NAME, f"Block path: {SIZE // 1024} KiB reads, {DEPTH} at a time")
    group.method = [
        f"The same {FILE_MIB} MiB file of random bytes in the page cache, raw, buffered, through io_uring, {REQUESTS} "
        "reads a run on one thread, taking turns.",
        f"qemu-img bench has no random order: -S {STEP * SIZE} makes it step through the whole file by {STEP} blocks, "
        "so that no read is near the one before; block-path draws blocks at random. block-path also does a driver's "
        "work on the virtqueue and the device's, which qemu-img has none of.",
        f"System calls are counted by the kernel in runs of their own, of {COUNTED[0]} and {COUNTED[1]} reads: "
        "the difference, per read.",
    ]
    with tempfile.TemporaryDirectory(prefix="corral-bench-") as directory:
        measure_in(group, runs, directory)
    return group

# SPDX-License-Identifier: Apache-2.0
"""corral disk convert of a sparse image, in every direction, against qemu-img convert."""

import os
import random

import disk
from core import Group

NAME = "disk-convert"
ABOUT = "corral disk convert of 8 GiB with 1 GiB of data in 4,096 pieces, against qemu-img convert"
RUNS = 5

SIZE_MIB, PIECE, PIECES = 8192, 256 << 10, 4096
DIRECTIONS = [("raw", "qcow2"), ("qcow2", "raw"), ("qcow2", "qcow2"), ("raw", "raw")]
OURS, QEMU = "corral", "qemu-img"


def make_source(path):
    """Pieces at places drawn once for all machines, no two alike."""
    draw = random.Random(8)
    with open(path, "wb") as file:
        file.truncate(SIZE_MIB * disk.MIB)
        for place in draw.sample(range(SIZE_MIB * disk.MIB // PIECE), PIECES):
            file.seek(place * PIECE)
            file.write(os.urandom(PIECE))


def ours(source, target, direction):
    return [disk.corral_disk(), "convert", source, target, "--from", direction[0], "--to", direction[1]]


def qemu(source, target, direction):
    """Its default never flushes; writeback is what its result can be relied on with, as ours can."""
    return [disk.qemu_img(), "convert", "-t", "writeback", "-f", direction[0], "-O", direction[1], source, target]


def measure_in(group, runs, directory):
    sources = {name: os.path.join(directory, f"source.{name}") for name in ("raw", "qcow2")}
    target = os.path.join(directory, "target")
    make_source(sources["raw"])
    disk.seconds(qemu(sources["raw"], sources["qcow2"], ("raw", "qcow2")))
    for i in range(runs):
        group.progress(i, runs)
        for direction in DIRECTIONS:
            what = f"{direction[0]} to {direction[1]}"
            for who, command in ((QEMU, qemu), (OURS, ours)):
                group.add(what, "s", who, disk.seconds(command(sources[direction[0]], target, direction)))
                if i == 0 and who == OURS:
                    disk.seconds([disk.qemu_img(), "compare", "-f", "raw", "-F", direction[1], sources["raw"], target])
                os.unlink(target)
    for direction in DIRECTIONS:
        what = f"{direction[0]} to {direction[1]}"
        group.bar(f"{what}, of qemu-img's time", "<=", 1.0, group.median(what, OURS) / group.median(what, QEMU),
                  line=(what, group.median(what, QEMU)))


def measure(runs, _directory):
    group = Group(NAME, "Disk images: convert")
    with disk.directory(4096) as directory:
        group.method = [
            f"A disk of {SIZE_MIB // 1024} GiB with {PIECE * PIECES >> 30} GiB of random bytes in {PIECES} pieces of "
            f"{PIECE >> 10} KiB, in the page cache, to a new file on the same file system "
            f"({disk.file_system(directory)}), taking turns, process start to end.",
            "Both leave a result that is flushed: qemu-img with -t writeback. Each of our results is compared with the "
            "source by qemu-img once.",
        ]
        measure_in(group, runs, directory)
    return group

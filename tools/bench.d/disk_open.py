# SPDX-License-Identifier: Apache-2.0
"""Opening a large qcow2 image: corral disk info and map, against qemu-img info and map."""

import os

import disk
from core import Group, run

NAME = "disk-open"
ABOUT = "corral disk info and map of a 1 TiB qcow2 image with 1 GiB written, against qemu-img"
RUNS = 15

SIZE_GIB, WRITTEN_MIB = 1024, 1024
OURS, QEMU = "corral", "qemu-img"
INFO, MAP = "info", "map"


def make_image(path):
    """The data is written in 64 places all over the disk; what it is does not matter here."""
    run([disk.qemu_img(), "create", "-q", "-f", "qcow2", path, f"{SIZE_GIB}G"])
    step = SIZE_GIB * 1024 // 64
    words = [word for i in range(64) for word in ("-c", f"write -q {i * step}M {WRITTEN_MIB // 64}M")]
    run(["qemu-io", "-f", "qcow2", *words, path])


def ours(verb, path):
    return [disk.corral_disk(), verb, path, "--format", "qcow2", "--json"]


def qemu(verb, path):
    return [disk.qemu_img(), verb, "-f", "qcow2", "--output=json", path]


def measure_in(group, runs, directory):
    path = os.path.join(directory, "image")
    make_image(path)
    for i in range(runs):
        group.progress(i, runs)
        for verb in (INFO, MAP):
            group.add(verb, "ms", QEMU, disk.seconds(qemu(verb, path)) * 1e3)
            group.add(verb, "ms", OURS, disk.seconds(ours(verb, path)) * 1e3)
    group.bar(f"info of a {SIZE_GIB // 1024} TiB image, process and all", "<", 5, group.median(INFO, OURS), "ms",
              line=(INFO, 5))
    group.bar("map of it, of qemu-img's time", "<=", 1.0, group.median(MAP, OURS) / group.median(MAP, QEMU),
              line=(MAP, group.median(MAP, QEMU)))


def measure(runs, _directory):
    group = Group(NAME, "Disk images: opening a large one")
    with disk.directory(2 * WRITTEN_MIB) as directory:
        group.method = [
            f"A qcow2 image of {SIZE_GIB // 1024} TiB, clusters of 64 KiB, {WRITTEN_MIB} MiB written in 64 places. Wall "
            "time of the whole command, two processes and the sealing of one included, taking turns.",
        ]
        measure_in(group, runs, directory)
    return group

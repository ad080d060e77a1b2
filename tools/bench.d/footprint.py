# SPDX-License-Identifier: Apache-2.0
"""What a VMM costs while its guest sleeps: memory besides the guest's own, CPU time, and the size
of its binary. The guest is idle.elf, which halts until someone types."""

import os
import re
import shutil
import subprocess
import tempfile
import time

from core import Group, Unavailable, corral, corral_vmm, guest, need, need_kvm, qemu_microvm, run

NAME = "footprint"
ABOUT = "memory and CPU time of a VMM besides its idle guest's, size of the binary"
RUNS = 3

GUEST_MIB = 96
SETTLE_S = 0.5
WINDOW_S = 3.0
OURS, LAUNCHER, QEMU = "corral-vmm", "corral run", "QEMU microvm"
PRIVATE, DIRTY, RSS = "private memory", "of it written", "resident, shared too"
IDLE, START = "CPU time, idle", "CPU time, start"
SIZE = "binary, stripped"

MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ (\d+) *(.*)$")


SMALL_START_KIB = 2048  # the kernel keeps a range with a policy of its own as a mapping of its own


def guest_ranges(lines, guest_kib):
    """The guest's memory: an anonymous, writable mapping of its size, or of that less the first 2 MiB and those before it."""
    found, before = [], None
    for line in lines:
        mapping = MAPPING.match(line)
        if not mapping:
            continue
        start, end = int(mapping[1], 16), int(mapping[2], 16)
        anonymous = mapping[4] == "0" and "w" in mapping[3]
        size = (end - start) // 1024
        if anonymous and size == guest_kib:
            found.append((start, end))
        elif anonymous and size == guest_kib - SMALL_START_KIB and before and before[1] == start \
                and before[1] - before[0] == SMALL_START_KIB * 1024:
            found.append((before[0], end))
        before = (start, end) if anonymous else None
    return found


def memory_kib(pid, guest_kib):
    """Sums over the mappings but the guest's memory."""
    sums = {"Private_Clean": 0, "Private_Dirty": 0, "Rss": 0}
    with open(f"/proc/{pid}/smaps", encoding="utf-8") as file:
        lines = file.readlines()
    ranges = guest_ranges(lines, guest_kib) if guest_kib else []
    found, skip = len(ranges), False
    for line in lines:
        mapping = MAPPING.match(line)
        if mapping:
            skip = any(start <= int(mapping[1], 16) < end for start, end in ranges)
            continue
        key, value = line.split(":", 1)
        if key in sums and not skip:
            sums[key] += int(value.split()[0])
    if guest_kib and found != 1:
        raise Unavailable(f"{found} mappings of process {pid} look like its guest's memory: one was expected")
    return sums


def cpu_seconds(pid):
    """The process's CPU clock (clock_getcpuclockid(3)): nanoseconds, where /proc counts ticks."""
    return time.clock_gettime((~pid << 3) | 2)


def child_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="utf-8") as file:
        children = file.read().split()
    if len(children) != 1:
        raise Unavailable(f"corral run has {len(children)} children: one was expected")
    return int(children[0])


def wait_ready(process):
    for line in process.stdout:
        if line.strip() == b"NOTE ready":
            return
    raise Unavailable("the idle guest ended before it was ready")


def watch(group, who, pid, launcher=None):
    group.add(START, "ms", who, cpu_seconds(pid) * 1e3)
    time.sleep(SETTLE_S)  # what ends the start is no part of being idle
    before, start = cpu_seconds(pid), time.monotonic()
    time.sleep(WINDOW_S)
    took = time.monotonic() - start
    group.add(IDLE, "ms/s", who, (cpu_seconds(pid) - before) * 1e3 / took)
    for name, process, guest_kib in ((who, pid, GUEST_MIB * 1024), (LAUNCHER, launcher, 0)):
        if process:
            sums = memory_kib(process, guest_kib)
            group.add(PRIVATE, "KiB", name, sums["Private_Clean"] + sums["Private_Dirty"])
            group.add(DIRTY, "KiB", name, sums["Private_Dirty"])
            group.add(RSS, "KiB", name, sums["Rss"])


def start(command):
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def measure_qemu(group):
    with start(qemu_microvm(guest("idle"), GUEST_MIB)) as process:
        try:
            wait_ready(process)
            watch(group, QEMU, process.pid)
        finally:
            process.kill()


def measure_corral(group):
    command = [corral(), "run", "--kernel", guest("idle"), "--memory", f"{GUEST_MIB}M", "--rng", "off"]
    with start(command) as process:
        try:
            wait_ready(process)
            watch(group, OURS, child_of(process.pid), process.pid)
            process.stdin.write(b"end\n")
            process.stdin.close()
            process.stdout.read()
            if process.wait() != 0:
                raise Unavailable(f"the idle guest ended with status {process.returncode}")
        finally:
            process.kill()


def stripped_size(path):
    with tempfile.TemporaryDirectory() as directory:
        copy = shutil.copy(path, directory)
        run([need("strip", "binutils"), copy])
        return os.path.getsize(copy)


def sizes(group):
    for who, path in ((QEMU, need("qemu-system-x86_64", "qemu-system-x86")), (OURS, corral_vmm()),
                      (LAUNCHER, corral())):
        group.add(SIZE, "KB", who, stripped_size(path) / 1e3)
        libraries = len(re.findall(r"=> /", run(["ldd", path])))
        group.add("libraries", "", who, libraries)


def measure(runs, _directory):
    need_kvm()
    group = Group(NAME, "Footprint: what a VMM costs besides its idle guest")
    group.method = [
        f"The guest is idle.elf with {GUEST_MIB} MiB, which halts; one serial port, no other device.",
        "Memory is from /proc/PID/smaps without the guest's: private pages, clean and written, count whole, pages of "
        "the binary and of libraries that nobody else maps among them.",
        f"CPU time, start: from exec until the guest says it is ready; idle: over {WINDOW_S:.0f} s, soon after.",
    ]
    for i in range(runs):
        group.progress(i, runs)
        measure_qemu(group)
        measure_corral(group)
    sizes(group)
    group.figures.sort(key=lambda f: [PRIVATE, DIRTY, RSS, IDLE, START, SIZE, "libraries"].index(f.what))
    group.bar("private memory of corral-vmm besides its guest's", "<=", 3072, group.median(PRIVATE, OURS), "KiB",
              line=(PRIVATE, 3072))
    group.bar("corral-vmm, stripped", "<=", 1500, group.median(SIZE, OURS), "KB", line=(SIZE, 1500))
    return group

# SPDX-License-Identifier: Apache-2.0
"""
Memory that goes back to the host: a Linux guest frees some, is told to do with less, and gets it
back; the host's own figure for the VMM counts. And a guest whose watchdog is left unfed, which
needs a kernel with the driver of the i6300esb: Debian's cloud kernel has none, so it is the lab's.
"""

import glob
import os
import re
import time

from machine import Corral, Failure
from suite import check, scenario

MIB = 1 << 20
SIZE = 384 * MIB
PIECE = 128 * MIB
KEEP = 160 * MIB
# Linux looks for free pages to report two seconds after the first was freed (PAGE_REPORTING_DELAY
# in mm/page_reporting.c), and reports them all at once; what the host does may take two more.
GUEST_DELAY = 2.0
HOST_DELAY = 2.0
STATS_VQ, DEFLATE_ON_OOM, PAGE_REPORTING = 1, 2, 5
HEARTBEAT = 4
WDIOF_CARDRESET = 0x20


def cpio(files):
    """An archive that the kernel unpacks as a part of the initrd: {name: data}, names without /."""
    out = b""
    for number, (name, data) in enumerate([*files.items(), ("TRAILER!!!", b"")], 1):
        fields = (number, 0o100644, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        out += head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
    return out


def with_modules(files, tree, *names):
    """The initrd with these drivers from a kernel's modules in it beside its own."""
    modules = {}
    for name in names:
        found = glob.glob(f"{tree}/kernel/**/{name}.ko", recursive=True)
        if not found:
            raise Failure(f"{tree} has no module {name}")
        with open(found[0], "rb") as file:
            modules[name + ".ko"] = file.read()
    with open(files.initrd, "rb") as file:
        initrd = file.read()
    # The kernel looks for an archive at every fourth byte, past zeroes.
    return files.new(f"initrd-{names[-1]}", initrd + bytes(-len(initrd) % 4) + cpio(modules))


def watchdog_kernel(files):
    """A kernel that drives the watchdog, installed here or unpacked in the cache (tools/lab needs it):
    its image, and where its modules are."""
    cache = os.path.dirname(os.path.dirname(files.initrd))
    for root in ["", *glob.glob(f"{cache}/debian/linux-image-*")]:
        for tree in glob.glob(f"{root}/lib/modules/*"):
            image = f"{root}/boot/vmlinuz-{os.path.basename(tree)}"
            if os.path.exists(image) and glob.glob(f"{tree}/kernel/drivers/watchdog/i6300esb.ko"):
                return image, tree
    raise Failure("no kernel in /boot or in the cache has a driver for the i6300esb: "
                  "install linux-image-amd64")


class Memory:
    """What the host knows of a guest's memory."""

    def __init__(self, guest):
        self.control = guest.control()
        self.pid = self.control.call("status")["pid"]

    def resident(self):
        with open(f"/proc/{self.pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    def balloon(self):
        return self.control.call("counters")["devices"]["balloon"]

    def until(self, condition, limit):
        """Seconds until the condition holds, or None: nothing wakes who waits for these figures."""
        start = time.monotonic()
        while not condition():
            if time.monotonic() - start > limit:
                return None
            time.sleep(0.02)
        return time.monotonic() - start


def driver(guest):
    features = guest.run("cat /sys/bus/virtio/drivers/virtio_balloon/virtio*/features")
    for bit in (STATS_VQ, DEFLATE_ON_OOM, PAGE_REPORTING):
        check(features[bit] == "1", f"feature {bit} is not used: {features}")


def report_free(guest, memory, report):
    guest.run("mkdir -p /piece && mount -t tmpfs -o size=200m tmpfs /piece")
    before = memory.resident()
    guest.run(f"dd if=/dev/zero of=/piece/file bs=1M count={PIECE // MIB} 2>/dev/null")
    full = memory.resident()
    # Some of it takes pages that were in use before.
    check(full - before >= PIECE // 2,
          f"{PIECE >> 20} MiB were written, the VMM grew by {(full - before) >> 20} MiB only")
    start = time.monotonic()
    guest.run(": >/piece/file")
    command = time.monotonic() - start
    took = memory.until(lambda: full - memory.resident() >= PIECE * 9 // 10,
                        GUEST_DELAY + HOST_DELAY)
    gone = full - memory.resident()
    check(took is not None, f"{GUEST_DELAY + HOST_DELAY:.0f} s after {PIECE >> 20} MiB were freed, "
          f"{gone >> 20} MiB are gone from the VMM; {memory.balloon()}")
    report.note(f"{gone >> 20} of {PIECE >> 20} MiB were gone {took:.2f} s after the command that "
                f"freed them, which took {command:.2f} s")
    reported = memory.balloon()["reported"]
    check(reported >= gone * 9 // 10, f"the guest reported {reported} bytes, {gone} are gone")


def statistics(guest, memory):
    """A look asks for newer figures, which the next look finds."""
    said = {}

    def fresh():
        said.update(memory.balloon().get("statistics", {}))
        return said.get("age-ms", 9999) < 500

    memory.until(fresh, 10)
    total = int(re.search(r"MemTotal:\s*(\d+)", guest.run("cat /proc/meminfo"))[1]) << 10
    check(said.get("total") == total, f"the guest has {total} bytes, the host knows of {said}")
    check(0 < said.get("free", 0) < total, f"free: {said}")
    check(0 < said.get("available", 0) < total, f"available: {said}")


def shrink(guest, memory):
    guest.verb("balloon", f"{KEEP >> 20}M")
    wanted = SIZE - KEEP
    check(memory.balloon()["target"] == wanted, f"the target is wrong: {memory.balloon()}")
    took = memory.until(lambda: memory.balloon()["actual"] == wanted, 60)
    check(took is not None, f"the guest does not give {wanted >> 20} MiB up: {memory.balloon()}")
    check(memory.balloon()["given"] >= wanted, f"given and actual differ: {memory.balloon()}")
    check(memory.resident() <= KEEP + 32 * MIB,
          f"the VMM holds {memory.resident() >> 20} MiB for a guest of {KEEP >> 20} MiB")
    free = int(re.search(r"MemFree:\s*(\d+)", guest.run("cat /proc/meminfo"))[1]) << 10
    check(free < KEEP, f"{free >> 20} MiB are free in a guest that has {KEEP >> 20} MiB")


def grow(guest, memory):
    guest.verb("balloon", "all")
    took = memory.until(lambda: memory.balloon()["actual"] == 0, 60)
    check(took is not None, f"the guest does not take its memory back: {memory.balloon()}")
    said = guest.run(f"dd if=/dev/zero of=/piece/file bs=1M count={PIECE // MIB} 2>/dev/null; "
                     "wc -c </piece/file")
    check(said == str(PIECE), f"of {PIECE} bytes the guest has room for {said}")


@scenario("memory", "balloon-driver", "free-page-reporting", "balloon-statistics",
          "balloon-shrink", "balloon-grow", "watchdog")
def memory_scenario(files, report):
    initrd = files.initrd
    flags = ("--memory", f"{SIZE >> 20}M", "--balloon", "on")
    try:
        with Corral(files, "", flags) as guest:
            guest.ready()
            memory = Memory(guest)
            with report.case("balloon-driver"):
                driver(guest)
            with report.case("free-page-reporting"):
                report_free(guest, memory, report)
            with report.case("balloon-statistics"):
                statistics(guest, memory)
            with report.case("balloon-shrink"):
                shrink(guest, memory)
            with report.case("balloon-grow"):
                grow(guest, memory)
            guest.send("poweroff -f\n")
            guest.end("power-off", 0)
        with report.case("watchdog"):
            starve(files)
    finally:
        files.initrd = initrd


def watchdog_guest(files):
    image, tree = watchdog_kernel(files)
    files.initrd = with_modules(files, tree, "watchdog", "i6300esb")
    return Corral(files, "", ("--memory", "256M", "--watchdog", "reset"), kernel=image)


def starve(files):
    """A guest opens its watchdog and feeds it no more: it is reset, and learns why."""
    load = f"insmod /watchdog.ko; insmod /i6300esb.ko heartbeat={HEARTBEAT}"
    status = "cat /sys/class/watchdog/watchdog0/bootstatus"
    with watchdog_guest(files) as guest:
        guest.ready()
        guest.run(load)
        check(guest.run(status) == "0", "the watchdog ran out before it was started")
        guest.run("exec 3>/dev/watchdog && echo >&3")
        start = time.monotonic()
        guest.ready()
        took = time.monotonic() - start
        check(took >= HEARTBEAT * 0.9, f"it was reset after {took:.1f} s, not {HEARTBEAT}")
        with guest.control() as control:
            resets = control.call("status")["resets"]
        check(resets == 1, f"the machine was reset {resets} times")
        guest.run(load)
        check(guest.run(status) == str(WDIOF_CARDRESET), "the guest does not know why it was reset")
        guest.send("poweroff -f\n")
        guest.end("power-off", 0)

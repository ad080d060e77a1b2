# SPDX-License-Identifier: Apache-2.0
"""
Disks that come to a running Linux and leave it: `corral disk add` and `corral disk remove`, and what
the guest sees of them by itself, without a rescan. One of them is in use when it is to go, one has
requests under way, and one comes while the guest still boots.
"""

import hashlib
import os
import random
import subprocess
import threading
import time

from machine import LIMIT, Corral, Failure
from suite import check, scenario

MIB = 1 << 20
SIZE = 16 * MIB
# In the guest: until the disk is there, or is gone. Nothing wakes a shell when a disk comes.
COMES = "for i in $(seq 600); do [ -e /sys/block/{0}/size ] && break; usleep 50000; done; " \
        "[ -e /sys/block/{0}/size ]"
GONE = "[ ! -e /sys/block/{0} ]"


def disk(files, name, seed):
    """A file of bytes that are not all the same, and their sum."""
    data = random.Random(seed).randbytes(MIB) * (SIZE // MIB)
    return files.new(name, data), hashlib.md5(data).hexdigest()


def corral(guest, *words, limit=LIMIT):
    done = subprocess.run([guest.files.corral, *words], env=guest.env, capture_output=True,
                          text=True, timeout=limit, check=False)
    if done.returncode:
        raise Failure(f"corral {' '.join(words)} ended with {done.returncode}: "
                      f"{done.stderr.strip()}")
    return done.stdout.strip()


def add(guest, path, wanted, words=""):
    name = corral(guest, "disk", "add", guest.name, path + words)
    check(name == wanted, f"the disk that came is \"{name}\", not {wanted}")


def remove(guest, name, seconds=60):
    corral(guest, "disk", "remove", guest.name, name, "--timeout", str(seconds))


class Events:
    """What the VMM tells of disks, from now on."""

    def __init__(self, guest):
        self.control = guest.control()
        self.control.call("events")

    def expect(self, event, name):
        while "disk" not in (said := self.control.event()) and said:
            pass
        check((said.get("event"), said.get("disk")) == (event, name),
              f"the VMM told {said}, not {event} of {name}")


def sysfs(guest, name, file):
    return guest.run(f"cat /sys/block/{name}/{file}")


def comes(guest, files, events):
    path, total = disk(files, "late1.img", 1)
    add(guest, path, "disk1", ",serial=LATE1,queues=2")
    guest.run(COMES.format("vdb"))
    events.expect("disk-added", "disk1")
    size = int(sysfs(guest, "vdb", "size")) * 512
    check(size == SIZE, f"the guest sees a disk of {size} bytes, not {SIZE}")
    check(sysfs(guest, "vdb", "serial") == "LATE1", "the serial number is another")
    queues = guest.run("ls /sys/block/vdb/mq").split()
    check(len(queues) == 2, f"the disk has the queues {queues}, not 2")
    said = guest.run("md5sum </dev/vdb").split()[0]
    check(said == total, "the guest reads something else than what is in the file")
    # It came by itself: nobody wrote to a file called rescan, and Linux says how it saw it.
    slots = guest.run("ls /sys/bus/pci/slots").split()
    check("9" in slots, f"Linux has no hot-plug slot 9: {slots}")
    power = guest.run("cat /sys/bus/pci/slots/9/power /sys/bus/pci/slots/9/address").split()
    check(power == ["1", "0000:00:09"], f"slot 9 is {power}")
    guest.run("dd if=/dev/urandom of=/dev/vdb bs=64k count=16 conv=fsync 2>/dev/null")
    said = guest.run("head -c 1048576 /dev/vdb | md5sum").split()[0]
    with open(path, "rb") as file:
        arrived = hashlib.md5(file.read(MIB)).hexdigest()
    check(said == arrived, "what the guest wrote is not in the file")


def goes(guest, events):
    remove(guest, "disk1")
    guest.run(GONE.format("vdb"))
    events.expect("disk-removed", "disk1")
    left = guest.run("ls /sys/bus/pci/devices; cat /proc/interrupts")
    check("0000:00:09.0" not in left, f"the function is still there:\n{left}")
    with guest.control() as control:
        devices = control.call("counters")["devices"]
    check("disk1" not in devices, "the VMM still counts for disk1")


def again(guest, files, events):
    """Again and again, one and two at a time, in the slots that were used before."""
    first, _ = disk(files, "late1.img", 2)
    second, total = disk(files, "late2.img", 3)
    for queues in (1, 2, 4):
        add(guest, first, "disk1", f",queues={queues}")
        add(guest, second, "disk2", ",readonly=on")
        guest.run(COMES.format("vdb"))
        guest.run(COMES.format("vdc"))
        for event in ("disk1", "disk2"):
            events.expect("disk-added", event)
        check(sysfs(guest, "vdc", "ro") == "1", "the read-only disk can be written")
        said = guest.run("md5sum </dev/vdc").split()[0]
        check(said == total, f"with {queues} queues the guest reads something else")
        remove(guest, "disk1")
        events.expect("disk-removed", "disk1")
        guest.run(GONE.format("vdb"))
        check(sysfs(guest, "vdc", "size"), "the other disk went, too")
        # The guest lets go of this one by itself.
        guest.run("echo 0 >/sys/bus/pci/slots/10/power")
        events.expect("disk-removed", "disk2")
        guest.run(GONE.format("vdc"))


def busy(guest, files, events):
    """Linux takes even a mounted disk away when it is asked to; what was synced is in the file."""
    path, _ = disk(files, "late1.img", 4)
    add(guest, path, "disk1")
    events.expect("disk-added", "disk1")
    guest.run(COMES.format("vdb"))
    guest.run("mke2fs -q /dev/vdb >/dev/null 2>&1; mkdir -p /mnt && mount -t ext4 /dev/vdb /mnt")
    guest.run("echo kept >/mnt/file && sync && exec 4>/mnt/open")
    remove(guest, "disk1")
    events.expect("disk-removed", "disk1")
    guest.run(GONE.format("vdb"))
    guest.run("exec 4>&-; umount -l /mnt", status=None)
    done = subprocess.run(["debugfs", "-R", "cat /file", path], capture_output=True, text=True,
                          check=False)
    check(done.stdout == "kept\n", f"the file holds \"{done.stdout}\": {done.stderr}")
    check(guest.run("echo alive") == "alive", "the guest is not well")


def under_way(guest, files, events):
    """Requests of every kind are under way when it goes."""
    path, _ = disk(files, "late1.img", 5)
    add(guest, path, "disk1", ",queues=2")
    events.expect("disk-added", "disk1")
    guest.run(COMES.format("vdb"))
    guest.run("(while dd if=/dev/vdb of=/dev/null bs=64k iflag=direct; do :; done) >/dev/null 2>&1 &")
    guest.run("(while dd if=/dev/zero of=/dev/vdb bs=64k oflag=direct conv=notrunc; do :; done) "
              ">/dev/null 2>&1 &")
    before = reads(guest)
    for _ in range(100):
        if reads(guest) > before + 50:
            break
    check(reads(guest) > before, "the disk is not in use")
    remove(guest, "disk1")
    events.expect("disk-removed", "disk1")
    guest.run(GONE.format("vdb"))
    check(guest.run("echo alive") == "alive", "the guest is not well")
    add(guest, path, "disk1")
    events.expect("disk-added", "disk1")
    guest.run("wait; " + COMES.format("vdb"))


def reads(guest):
    with guest.control() as control:
        return control.call("counters")["devices"]["disk1"]["reads"]


def reboots(guest, events):
    """One stays over a reboot; one that is asked for while nobody listens goes with the reset."""
    guest.send("reboot -f\n")
    guest.ready()
    check(int(sysfs(guest, "vdb", "size")) * 512 == SIZE, "the disk did not stay")
    # The slot has lost its driver, so the guest does not answer before it is reset.
    with guest.control() as control:
        control.call("pause")
        control.call("disk-remove", {"disk": "disk1", "timeout-ms": 0})
        control.call("reset")
        control.call("resume")
    events.expect("disk-removed", "disk1")
    guest.ready()
    guest.run(GONE.format("vdb"))


def complaints(guest):
    text = guest.run("dmesg | grep -E 'WARNING|BUG|Oops|Call Trace|acpiphp.*(fail|error)'",
                     status=None)
    check(not text, f"the kernel complains:\n{text}")


def early(files):
    """A disk comes, and one is to go, while nobody in the guest can hear of it yet."""
    root = files.copy(files.busybox, "hotplug-early.img")
    path, total = disk(files, "early.img", 6)
    spare, _ = disk(files, "spare.img", 7)
    flags = ("--memory", "256M", "--disk", root, "--disk", spare)
    with Corral(files, "root=/dev/vda", flags) as guest:
        while not os.path.exists(guest.path("control.sock")):
            time.sleep(0.01)
        asked = threading.Thread(target=remove, args=(guest, "disk1", 100))
        asked.start()
        add(guest, path, "disk2")
        guest.ready()
        asked.join()
        name = guest.run("for d in /sys/block/vd*; do "
                         f"[ $(cat $d/size) = {SIZE // 512} ] && basename $d; done").split()
        check(len(name) == 1, f"of the disks of {SIZE} bytes the guest has {name}, not one")
        said = guest.run(f"md5sum </dev/{name[0]}").split()[0]
        check(said == total, "it is not the disk that came")
        guest.send("poweroff -f\n")
        guest.end("power-off", 0)


@scenario("hotplug", "hotplug-add", "hotplug-remove", "hotplug-again", "hotplug-busy",
          "hotplug-under-way", "hotplug-reboot", "hotplug-no-complaints", "hotplug-early")
def hotplug(files, report):
    root = files.copy(files.busybox, "hotplug.img")
    flags = ("--cpus", "2", "--memory", "256M", "--disk", root + ",queues=2")
    with Corral(files, "root=/dev/vda", flags) as guest:
        guest.ready()
        guest.run("dmesg -c >/dev/null")
        events = Events(guest)
        with report.case("hotplug-add"):
            comes(guest, files, events)
        with report.case("hotplug-remove"):
            goes(guest, events)
        with report.case("hotplug-again"):
            again(guest, files, events)
        with report.case("hotplug-busy"):
            busy(guest, files, events)
        with report.case("hotplug-under-way"):
            under_way(guest, files, events)
        with report.case("hotplug-no-complaints"):
            complaints(guest)
        with report.case("hotplug-reboot"):
            reboots(guest, events)
        guest.send("poweroff -f\n")
        guest.end("power-off", 0)
    with report.case("hotplug-early"):
        early(files)

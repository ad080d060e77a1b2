# SPDX-License-Identifier: Apache-2.0
"""
What the kernel warns of on Corral's board and not on QEMU's. The same kernel, initrd, disk and
command line; every line of level "warning" or worse, with what differs from boot to boot (times,
addresses, numbers) made equal.
"""

import json
import os
import re

from machine import Corral, Qemu
from suite import check, scenario

# Words that complain at whatever level.
WORDS = ("warn|error|fail|bug:|invalid|unable|cannot|AE_|retains|not found|unknown|conflict|"
         "unsupported|bogus|broken|unstable")
# Levels 0 to 4 are "warning" and worse. The guest picks, for a serial line is slow.
MESSAGES = f"dmesg -r | grep -iE '^<([0-4]>|[5-7]>.*({WORDS}))'"
APPEND = "root=/dev/vda quiet"


def normal(line):
    """A message without what differs from boot to boot: its time, addresses, numbers."""
    line = re.sub(r"^<\d>\[ *[\d.]+\] ", "", line)
    line = re.sub(r"^(Hardware name: |Code: ).*", r"\1", line)
    line = re.sub(r"\b(0x)?[0-9a-f]*\d[0-9a-f]*\b", "N", line)
    return re.sub(r"\s+", " ", line).strip()


def messages(guest):
    guest.ready()
    lines = guest.run(MESSAGES, status=None).splitlines()
    total = int(guest.run("dmesg -r | wc -l"))
    check(total > 200, f"the guest's kernel has said {total} lines only")
    guest.send("poweroff -f\n")
    guest.wait()
    found = {normal(line): line for line in lines if re.match(r"<\d>\[", line)}
    return found


def qemu_messages(machine, files):
    """What QEMU's guest says never changes, and booting it is slow: it is asked once."""
    path = os.path.join(files.known, machine + ".json")
    if not os.path.exists(path):
        with Qemu(machine, files, files.copy(files.busybox, machine + ".img"), APPEND) as guest:
            found = sorted(messages(guest))
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump(found, file, indent=0)
        os.rename(path + ".new", path)
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def warns(line):
    return line[1] <= "4"


@scenario("dmesg", "dmesg-warnings", "dmesg-complaints")
def dmesg(files, report):
    known = set()
    for machine in Qemu.MACHINES:
        theirs = qemu_messages(machine, files)
        report.note(f"{machine}: {len(theirs)} messages")
        known |= set(theirs)
    flags = ("--cpus", "2", "--memory", "256M", "--disk", files.copy(files.busybox, "c.img"))
    with Corral(files, "root=/dev/vda", flags) as guest:
        ours = messages(guest)
    report.note(f"corral: {len(ours)} messages")
    alone = [line for key, line in ours.items() if key not in known]
    for name, level in (("dmesg-warnings", True), ("dmesg-complaints", False)):
        with report.case(name):
            found = [line for line in alone if warns(line) == level]
            check(not found, "the kernel says this on Corral alone:\n" + "\n".join(found))

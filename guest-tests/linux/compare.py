# SPDX-License-Identifier: Apache-2.0
"""
What the kernel warns of on Corral's board and not on QEMU's. The same kernel, initrd, disk and
command line; every line of level "warning" or worse, with what differs from boot to boot (times,
addresses, numbers) made equal.
"""

import re

from machine import Corral, Qemu
from suite import check, scenario

WARNINGS = "dmesg -r | grep '^<[0-4]>'"
APPEND = "root=/dev/vda quiet"


def normal(line):
    line = re.sub(r"^<\d>\[ *[\d.]+\] ", "", line)
    line = re.sub(r"\b(0x)?[0-9a-f]*\d[0-9a-f]*\b", "N", line)
    return re.sub(r"\s+", " ", line).strip()


def warnings(guest):
    guest.ready()
    lines = guest.run(WARNINGS, status=None).splitlines()
    guest.send("poweroff -f\n")
    guest.wait()
    return {normal(line): line for line in lines if re.match(r"<\d>\[", line)}


@scenario("dmesg", "dmesg")
def dmesg(files, report):
    with report.case("dmesg"):
        flags = ("--cpus", "2", "--memory", "256M", "--disk", files.copy(files.busybox, "c.img"))
        with Corral(files, "root=/dev/vda", flags) as guest:
            ours = warnings(guest)
        known = {}
        for machine in Qemu.MACHINES:
            with Qemu(machine, files, files.copy(files.busybox, machine + ".img"), APPEND) as guest:
                theirs = warnings(guest)
            report.note(f"{machine}: {len(theirs)} warnings: " + "; ".join(theirs))
            known |= theirs
        report.note(f"corral: {len(ours)} warnings")
        alone = [line for key, line in ours.items() if key not in known]
        check(not alone, "the kernel warns of this on Corral alone:\n" + "\n".join(alone))

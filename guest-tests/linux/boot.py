# SPDX-License-Identifier: Apache-2.0
"""
Stock kernels: from the image to a shell on a disk, around a reset, and off again.
"""

import subprocess

from machine import Corral
from suite import NOBODY, check, scenario

MEMORY = ("--memory", "256M")


def check_hello(guest, files, cpus, disk):
    version = guest.expect(r"^Hello from the guest: Linux (\S+), up for")[1]
    check(version == files.version, f"the guest runs Linux {version}, not {files.version}")
    said = guest.expect(r"^CPUs: (\d+),")[1]
    check(said == str(cpus), f"the guest has {said} CPUs, not {cpus}")
    memory = int(guest.expect(r"^Memory: (\d+) MiB")[1])
    check(190 <= memory <= 256, f"the guest has {memory} MiB, not most of 256")
    if disk:
        guest.expect(r"^Disk vda: 64 MiB, ext4 with \d+ files, at the top: bin dev etc")
    guest.ready()


def file_in_image(image, path):
    """Reads a file out of an ext4 image, with no help of a kernel's."""
    done = subprocess.run(["debugfs", "-R", f"cat {path}", image], capture_output=True, text=True,
                          check=True)
    return done.stdout


@scenario("bzimage", "bzimage-shell", "reboot", "reset", "shutdown", "writes-arrived")
def bzimage(files, report):
    disk = files.copy(files.busybox, "bzimage.img")
    flags = ("--cpus", "2", *MEMORY, "--disk", disk)
    with Corral(files, "root=/dev/vda corral.hello", flags) as guest:
        with report.case("bzimage-shell"):
            check_hello(guest, files, 2, disk=True)
            root = guest.run("grep ' / ' /proc/mounts | tail -n 1")
            check(root.startswith("/dev/vda / ext4 rw"), f"the root is {root}")
        with report.case("reboot"):
            guest.run("echo first >/state && sync")
            guest.send("reboot -f\n")
            check_hello(guest, files, 2, disk=True)
            state = guest.run("cat /state; echo second >>/state; sync")
            check(state == "first", f"after the reboot the disk holds \"{state}\"")
            with guest.control() as control:
                resets = control.call("status")["resets"]
            check(resets == 1, f"status counts {resets} resets, not 1")
        with report.case("reset"):
            guest.verb("reset")
            check_hello(guest, files, 2, disk=True)
            state = guest.run("cat /state; echo third >>/state; sync").split()
            check(state == ["first", "second"], f"after the reset the disk holds {state}")
        with report.case("shutdown"):
            guest.verb("shutdown")
            record = guest.end("power-off", 0)
            check("the power button was pressed" in guest.text, "the guest saw no power button")
            # Those of the guest's own making.
            check(record["resets"] == 1, f"the record counts {record['resets']} resets, not 1")
    with report.case("writes-arrived"):
        state = file_in_image(disk, "/state").split()
        check(state == ["first", "second", "third"], f"the image holds {state}")


@scenario("vmlinux", "ordinary-user", "vmlinux-shell", "smp", "clock", "power-off")
def vmlinux(files, report):
    disk = files.copy(files.busybox, "vmlinux.img", NOBODY)
    flags = ("--cpus", "4", *MEMORY, "--disk", disk)
    with Corral(files, "root=/dev/vda corral.hello", flags, NOBODY, files.vmlinux) as guest:
        with report.case("vmlinux-shell"):
            check_hello(guest, files, 4, disk=True)
        with report.case("ordinary-user"):
            with guest.control() as control:
                vmm = control.call("status")["pid"]
            with open(f"/proc/{vmm}/status", encoding="utf-8") as status:
                uids = next(line for line in status if line.startswith("Uid:")).split()[1:]
            check("0" not in uids, f"the VMM of an ordinary user has the ids {uids}")
        with report.case("smp"):
            online = guest.run("cat /sys/devices/system/cpu/online")
            check(online == "0-3", f"the CPUs {online} are online, not 0-3")
            # Each does something: a shell bound to it says where it runs.
            for cpu in range(4):
                ran = guest.run(f"taskset -c {cpu} cut -d ' ' -f 39 /proc/self/stat")
                check(ran == str(cpu), f"what is bound to CPU {cpu} runs on {ran}")
        with report.case("clock"):
            clock = guest.run("cat /sys/devices/system/clocksource/clocksource0/current_clocksource")
            check(clock == "kvm-clock", f"the clock source is {clock}")
        with report.case("power-off"):
            guest.send("sync; poweroff -f\n")
            guest.end("power-off", 0)
            check("reboot: Power down" in guest.text, f"the guest did not say so:\n{guest.tail()}")

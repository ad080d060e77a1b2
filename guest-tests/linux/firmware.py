# SPDX-License-Identifier: Apache-2.0
"""
Disks that UEFI firmware boots as they are: a Debian with its own boot loader, kernel and services,
around a reset, a reboot and to the power button; Debian's installer to its first question.
"""

import base64
import os
import subprocess
import time

from machine import AGENT, Console, Corral
from suite import check, scenario

# What `inside` is handed beyond the pieces of all guests.
PIECES = ("firmware", "cloud", "installer")

# Firmware and a whole userland on an emulated CPU; 50 s and 25 s where nothing else runs.
LOGIN_LIMIT = 400
STAGE_LIMIT = 240

TIMER = "/sys/module/kvm/parameters/min_timer_period_us"
TIMER_US = 1000000

LOGIN = r"debian login: "
KERNEL = r"Loading Linux 6"


class Firmware(Corral):
    """A guest whose firmware finds its own way into the disk."""

    def __init__(self, files, flags):  # pylint: disable=super-init-not-called # it names a kernel
        Corral.count += 1
        self.name = f"linux-{os.getpid()}-{Corral.count}"
        self.files = files
        self.user = None
        self.env = files.environment()
        self.record_fd = -1
        Console.__init__(self, [files.corral, "run", "--name", self.name, "--firmware",
                                files.firmware, *flags], self.env)

    def booted(self):
        """The firmware has found a boot loader, and that a kernel."""
        self.expect(r"BdsDxe: starting Boot\d+ \"UEFI Misc Device\"", STAGE_LIMIT)
        if self.record_fd < 0:
            self.record_fd = os.open(self.path("exit.json"), os.O_RDONLY)
        self.expect(r"Welcome to GRUB!", STAGE_LIMIT)

    def log_in(self):
        self.expect(LOGIN, LOGIN_LIMIT)
        self.send("root\n")
        self.expect(r"Password: ")
        self.send("corral\n")
        self.expect(r"root@debian:~# ")
        words = base64.b64encode(AGENT.encode()).decode()
        # The line begins with what bash says to a terminal.
        self.send(f"echo; exec dash -c \"$(echo {words} | base64 -d)\"\n")
        self.expect(r"^@ready$")


def slow_timer(files):
    """
    Firmware ticks a hundred times a second and writes CR8 at the end of each tick. When the next is
    due by then, QEMU's emulation of SVM ends by an assertion (seen with 7.2: an interrupt raised
    without its lock), which in an emulated host is every second boot. With fewer ticks it is rare.
    Linux has no periodic timer and no use for CR8.
    """
    if files.emulated:
        with open(TIMER, "w", encoding="utf-8") as file:
            file.write(str(TIMER_US))


def own_copy(files, image, name):
    """As files.copy(), but past the page cache: in an emulated host that is what takes the time."""
    path = os.path.join(files.directory, name)
    done = subprocess.run(["dd", f"if={image}", f"of={path}", "bs=4M", "iflag=direct",
                           "conv=sparse", "status=none"], check=False)
    return files.copy(image, name) if done.returncode else path


def look_around(guest, files):
    """Tables and clock came through the firmware's hands, the command line from the boot loader."""
    said = guest.run("cat /proc/cmdline /sys/class/dmi/id/product_name; uname -r; nproc; "
                     "ls /sys/firmware/efi/runtime-map | wc -l").splitlines()
    check(said[0].startswith("BOOT_IMAGE=/boot/vmlinuz-"), f"the command line is {said[0]}")
    check(said[1] == "corral-1", f"the guest takes its board for \"{said[1]}\"")
    check(said[2] == files.version, f"the guest runs Linux {said[2]}, not {files.version}")
    check(said[3] == "2", f"the guest has {said[3]} CPUs, not 2")
    check(int(said[4]) > 0, "the guest knows of no runtime services")
    clock = int(guest.run("cat /sys/class/rtc/rtc0/since_epoch"))
    check(abs(clock - time.time()) < 30, f"the guest's clock says {clock} at {time.time():.0f}")
    mounts = guest.run("grep -E '^/dev/' /proc/mounts")
    check("/dev/vda2 / ext4 rw" in mounts, f"mounted are: {mounts}")
    check("/dev/vda1 /boot/efi vfat" in mounts, f"mounted are: {mounts}")
    failed = guest.run("systemctl --failed --no-legend --plain --no-pager")
    check(not failed, f"these services failed: {failed}")


@scenario("firmware", "firmware-boot", "firmware-reset", "firmware-login", "firmware-guest",
          "firmware-reboot", "firmware-power-off")
def firmware(files, report):
    slow_timer(files)
    disk = own_copy(files, files.cloud, "cloud.img")
    with Firmware(files, ("--cpus", "2", "--memory", "512M", "--disk", disk)) as guest:
        with report.case("firmware-boot"):
            guest.booted()
            guest.expect(KERNEL, STAGE_LIMIT)
        with report.case("firmware-reset"):
            guest.verb("reset")
            guest.booted()
        with report.case("firmware-login"):
            guest.log_in()
        with report.case("firmware-guest"):
            look_around(guest, files)
        with report.case("firmware-reboot"):
            guest.run("echo first >/root/state; sync")
            guest.send("reboot -ff\n")
            guest.booted()
            guest.log_in()
            state = guest.run("cat /root/state")
            check(state == "first", f"after the reboot the disk holds \"{state}\"")
        with report.case("firmware-power-off"):
            guest.verb("shutdown")
            record = guest.end("power-off", 0, STAGE_LIMIT)
            check(record["resets"] == 1, f"the record counts {record['resets']} resets, not 1")
            # The firmware deals out addresses anew, and a reset takes them back.
            check("no kick can be heard" not in guest.stderr(), f"it says: {guest.stderr()}")
    os.remove(disk)


@scenario("installer", "installer-dialogue")
def installer(files, report):
    slow_timer(files)
    disk = own_copy(files, files.installer, "installer.img")
    with Firmware(files, ("--memory", "1G", "--disk", f"{disk},readonly=on")) as guest:
        with report.case("installer-dialogue"):
            guest.booted()
            guest.expect(r"\[!!\] Select a language", LOGIN_LIMIT)

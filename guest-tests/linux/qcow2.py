# SPDX-License-Identifier: Apache-2.0
"""
A Debian guest writes a qcow2 overlay of a template with fio, which verifies what it wrote, while
snapshots are taken of it; then the disk grows, its store fills up and is given space again.
"""

import json
import os
import subprocess

from machine import Corral, Failure
from suite import check, scenario

MIB = 1 << 20
SIZE = 64 * MIB
GROWN = 96 * MIB
STORE = 12 * MIB
FIO_LIMIT = 300
FIO = ("fio --name=verify --filename=/dev/vdb --ioengine=libaio --direct=1 --iodepth=16 "
       "--eta=never --verify=crc32c --verify_fatal=1 --output=/tmp/fio")


def tool(files, *words):
    """corral disk, as the host's user says it."""
    done = subprocess.run([files.corral, "disk", *words], env=files.environment(),
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"corral disk {' '.join(words)} ended with {done.returncode}: "
                      f"{done.stderr.strip()}")
    return done.stdout


class Store:
    """A file system of its own, so small that it fills up."""

    def __init__(self, files, size):
        self.path = os.path.join(files.directory, "store")
        os.makedirs(self.path, exist_ok=True)
        self.size = size

    def resize(self, size):
        subprocess.run(["mount", "-o", f"remount,size={size}", self.path], check=True)

    def __enter__(self):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={self.size}", "tmpfs", self.path],
                       check=True)
        return self

    def __exit__(self, *_):
        subprocess.run(["umount", self.path], check=True)


def template(files, directory):
    """A template with something in it, and an overlay on it."""
    base, overlay = (os.path.join(directory, name) for name in ("base.qcow2", "top.qcow2"))
    raw = files.new("template.raw", os.urandom(4 * MIB) + bytes(SIZE - 4 * MIB))
    tool(files, "convert", raw, base, "--from", "raw", "--to", "qcow2")
    tool(files, "clone", base, overlay, "--format", "qcow2")
    return base, overlay


def check_clean(files, *images):
    for image in images:
        found = json.loads(tool(files, "check", image, "--format", "qcow2", "--json"))
        check(found["corruptions"] == 0 and found["leaks"] == 0, f"{image}: {found}")
        done = subprocess.run(["qemu-img", "check", "-f", "qcow2", image], capture_output=True,
                              text=True, check=False)
        check(done.returncode == 0, f"qemu-img finds in {image}: {done.stdout}{done.stderr}")


def verify(guest, report, snapshots):
    """fio writes and reads back while `snapshots` are taken one after the other."""
    guest.send(f"{FIO} --rw=randwrite --bs=4k --size=24m --do_verify=1; echo @fio $?\n")
    for snapshot in snapshots:
        snapshot()
    said = guest.expect(r"^@fio (\d+)$", FIO_LIMIT)
    check(said[1] == "0", "fio does not find what it wrote: " + guest.run("tail -n 20 /tmp/fio"))
    report.note(guest.run("grep -E '(READ|WRITE): ' /tmp/fio"))


@scenario("qcow2", "qcow2-boot", "qcow2-verify", "qcow2-chain", "qcow2-grow", "qcow2-clean")
def qcow2(files, report):
    base, overlay = template(files, files.directory)
    names = [os.path.join(files.directory, f"top{n}.qcow2") for n in (1, 2)]
    flags = ("--cpus", "2", "--memory", "384M", "--disk", f"{files.debian},readonly=on",
             "--disk", f"{overlay},format=qcow2,backing=allow,queues=2")
    with Corral(files, "root=/dev/vda ro", flags) as guest:
        with report.case("qcow2-boot"):
            guest.ready()
            sectors = guest.run("cat /sys/block/vdb/size")
            check(int(sectors) * 512 == SIZE, f"the guest sees {sectors} sectors")
        with report.case("qcow2-verify"):
            verify(guest, report, [lambda name=name: tool(
                files, "snapshot", "--vm", guest.name, "disk1", name) for name in names])
        with report.case("qcow2-chain"):
            info = json.loads(tool(files, "info", names[1], "--format", "qcow2", "--json",
                                   "--force"))
            check(info["backing"]["name"].endswith("top1.qcow2"), f"the chain is {info}")
            # What the template holds is there still, through four images.
            with open(os.path.join(files.directory, "template.raw"), "rb") as file:
                file.seek(3 * MIB)
                there = file.read(16).hex()
            seen = guest.run("dd if=/dev/vdb bs=16 skip=196608 count=1 2>/dev/null | od -An -tx1"
                             " | tr -d ' '")
            check(len(there) == len(seen), f"the guest reads {seen}")
        with report.case("qcow2-grow"):
            tool(files, "resize", "--vm", guest.name, "disk1", str(GROWN))
            guest.run(f"n=0; until [ $(cat /sys/block/vdb/size) = {GROWN // 512} ]; do "
                      "n=$((n + 1)); [ $n -lt 500 ] || break; sleep 0.02; done; "
                      f"[ $(cat /sys/block/vdb/size) = {GROWN // 512} ]")
            guest.run("head -c 1M /dev/urandom | dd of=/dev/vdb bs=64k seek=1520 oflag=direct "
                      "conv=fsync 2>/dev/null")
        guest.send("poweroff -f\n")
        guest.end("power-off", 0)
    with report.case("qcow2-clean"):
        check_clean(files, base, overlay, *names)


@scenario("qcow2-full", "full-pause", "full-resume", "full-verify")
def full(files, report):
    """The store is smaller than what the guest writes: it waits until there is space."""
    with Store(files, STORE) as store:
        image = os.path.join(store.path, "disk.qcow2")
        tool(files, "create", image, str(SIZE), "--format", "qcow2")
        flags = ("--memory", "384M", "--disk", f"{files.debian},readonly=on",
                 "--disk", f"{image},format=qcow2")
        with Corral(files, "root=/dev/vda ro", flags) as guest:
            with report.case("full-pause"):
                guest.ready()
                with guest.control() as control:
                    control.call("events")
                    guest.send(f"{FIO} --rw=write --bs=64k --size=24m --do_verify=1; "
                               "echo @fio $?\n")
                    seen = []
                    while "disk-error" not in seen:
                        seen.append(control.event()["event"])
                    check("disk-full-soon" in seen, f"no word before the store was full: {seen}")
                    check(control.call("status")["state"] in ("pausing", "paused"),
                          "the VM goes on on a full store")
            with report.case("full-resume"):
                store.resize(8 * STORE)
                guest.verb("resume")
            with report.case("full-verify"):
                said = guest.expect(r"^@fio (\d+)$", FIO_LIMIT)
                check(said[1] == "0", "fio saw the full store: " + guest.run("tail /tmp/fio"))
                guest.send("poweroff -f\n")
                guest.end("power-off", 0)
                check_clean(files, image)

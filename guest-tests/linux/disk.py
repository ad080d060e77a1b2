# SPDX-License-Identifier: Apache-2.0
"""
A Debian guest and its disks: data that fio verifies, what the host finds in the files afterwards,
discards and zeroes, a disk that may not be written. It ends by a panic that pvpanic tells.
"""

import hashlib
import os

from machine import Corral
from suite import check, scenario

MIB = 1 << 20
DISK = 32 * MIB

FIO = ("fio --name=verify --filename=/dev/vdb --rw=randwrite --bs=16k --size=12m --numjobs=2 "
       "--offset_increment=12m --ioengine=libaio --iodepth=16 --direct=1 --verify=crc32c "
       "--do_verify=1 --verify_fatal=1 --cpus_allowed=0,1 --cpus_allowed_policy=split --thread "
       "--output=/tmp/fio")


def blocks(path):
    return os.stat(path).st_blocks * 512


def read_range(path, start, length):
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(length)


def fio(guest):
    guest.run(FIO + " >/dev/null 2>&1", status=None)
    errors = guest.run("grep -o 'err=.*' /tmp/fio", status=None).splitlines()
    check(len(errors) == 2 and all(line.startswith("err= 0:") for line in errors),
          "fio says: " + guest.run("cat /tmp/fio", status=None))
    sums = guest.run("grep -oE '(READ|WRITE): .* io=[^ ]*' /tmp/fio", status=None)
    check(sums.count("io=24.0MiB") == 2, f"fio did not write 24 MiB and read them back: {sums}")
    queues = guest.run("ls /sys/block/vdb/mq").split()
    check(queues == ["0", "1"], f"the guest drives the queues {queues}, not 0 and 1")


def pattern(guest, path):
    """The guest writes what it knows of; the host finds it in the file."""
    guest.run("head -c 4M /usr/bin/perl >/tmp/pattern 2>/dev/null; "
              "dd if=/tmp/pattern of=/dev/vdb bs=64k seek=384 oflag=direct conv=fsync 2>/dev/null")
    said = guest.run("stat -c %s /tmp/pattern; md5sum /tmp/pattern").split()
    data = read_range(path, 24 * MIB, int(said[0]))
    check(len(data) >= 2 * MIB, f"the pattern has {len(data)} bytes only")
    found = hashlib.md5(data).hexdigest()
    check(found == said[1], f"the guest wrote data with the sum {said[1]}, in the file is {found}")


def discard(guest, path):
    before = blocks(path)
    guest.run(f"blkdiscard -o 0 -l {12 * MIB} /dev/vdb")
    freed = before - blocks(path)
    check(freed >= 11 * MIB, f"a discard of 12 MiB freed {freed} bytes of the file")
    check(not any(read_range(path, 0, 12 * MIB)), "discarded blocks hold data")
    check(any(read_range(path, 12 * MIB, 64 << 10)), "blocks after the discarded ones are gone")
    zeroes = guest.run("dd if=/dev/vdb bs=1M count=12 iflag=direct 2>/dev/null | tr -d '\\0' | wc -c")
    check(zeroes == "0", f"the guest reads {zeroes} bytes that are not 0 where it discarded")


def write_zeroes(guest, path):
    before = read_range(path, 12 * MIB, 2 * MIB), read_range(path, 16 * MIB, MIB)
    check(any(before[0]) and any(before[1]), "there is nothing to overwrite")
    guest.run(f"blkdiscard -z -o {14 * MIB} -l {2 * MIB} /dev/vdb")
    check(not any(read_range(path, 14 * MIB, 2 * MIB)), "the file holds data where zeroes belong")
    after = read_range(path, 12 * MIB, 2 * MIB), read_range(path, 16 * MIB, MIB)
    check(before == after, "zeroes went beside their place")
    counted = guest.run("cut -c 1- /sys/block/vdb/queue/write_zeroes_max_bytes")
    check(int(counted) > 0, "the guest knows of no write-zeroes: it wrote plain zeroes")


def readonly(guest, path, data):
    check(guest.run("cat /sys/block/vdc/ro") == "1", "the guest takes the disk for writable")
    text = guest.run("dd if=/tmp/pattern of=/dev/vdc bs=4k count=1 oflag=direct 2>&1", status=1)
    check("not permitted" in text or "Read-only" in text or "Input/output" in text,
          f"writing fails in a strange way: {text}")
    # A guest that believes otherwise is refused by the device.
    text = guest.run("blockdev --setrw /dev/vdc && dd if=/tmp/pattern of=/dev/vdc bs=4k count=1 "
                     "oflag=direct 2>&1", status=None)
    check("copied" not in text or "0 bytes" in text, f"the disk took a write: {text}")
    check(read_range(path, 0, len(data)) == data, "the file of the read-only disk has changed")
    same = guest.run("dd if=/dev/vdc bs=4k iflag=direct 2>/dev/null | md5sum").split()[0]
    check(same == hashlib.md5(data).hexdigest(), "the guest reads other data than the file holds")


@scenario("disk", "debian-root", "disk-serial", "fio", "data-in-file", "discard", "write-zeroes",
          "readonly", "panic-pvpanic")
def disk(files, report):
    work = files.new("work.img", bytes(DISK))
    data = os.urandom(MIB)
    fixed = files.new("fixed.img", data)
    flags = ("--cpus", "2", "--memory", "384M", "--disk", f"{files.debian},readonly=on",
             "--disk", f"{work},queues=2,serial=work-0815", "--disk", f"{fixed},readonly=on")
    with Corral(files, "root=/dev/vda ro", flags) as guest:
        with report.case("debian-root"):
            guest.ready()
            system = guest.run(". /etc/os-release; echo $ID; uname -r").split()
            check(system == ["debian", files.version], f"the guest is {system}")
        with report.case("disk-serial"):
            serial = guest.run("cat /sys/block/vdb/serial")
            check(serial == "work-0815", f"the guest sees the serial number \"{serial}\"")
        with report.case("fio"):
            fio(guest)
        with report.case("data-in-file"):
            pattern(guest, work)
        with report.case("discard"):
            discard(guest, work)
        with report.case("write-zeroes"):
            write_zeroes(guest, work)
        with report.case("readonly"):
            readonly(guest, fixed, data)
        with report.case("panic-pvpanic"):
            modules = guest.run("cut -d ' ' -f 1 /proc/modules").split()
            check("pvpanic" in modules, f"the guest has no pvpanic: {modules}")
            guest.send("echo c >/proc/sysrq-trigger\n")
            record = guest.end("panic", 4)
            check("sysrq triggered crash" in record["text"],
                  f"the sentence lacks the panic's words: {record['text']}")

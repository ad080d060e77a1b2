# SPDX-License-Identifier: Apache-2.0
"""
What a guest can judge by itself: commands.json, run by `corral ci`, a guest a test, in its order.
Here are the pieces its paths name, and what only the host can see of them afterwards: the bytes in
the files behind the disks, and what the guest's kernel warned of.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree

from machine import LIMIT
from suite import check, scenario

MIB = 1 << 20
LIST = os.path.join(os.path.dirname(os.path.abspath(__file__)), "commands.json")

# No root image has drivers: these, and what they need, come on a disk.
DRIVERS = ("virtio-rng", "virtio_balloon", "vmw_vsock_virtio_transport")
# The emulated host's CPU has sizes of XSAVE's areas that Linux counts otherwise; it says so in a
# splat, and lists what the CPU told it.
STAMP = r"<4>\[[ .\d]+\] "
KNOWN = re.compile(STAMP + r"-+\[ cut here (?:(?!cut here).)*?arch/x86/kernel/fpu/xstate\.c.*?"
                   r"---\[ end trace [^\n]*\n(?:" + STAMP + r"CPUID\[0d, [^\n]*\n)*", re.S)

with open(LIST, encoding="utf-8") as _file:
    NAMES = [test["name"] for test in json.load(_file)["tests"]]


def modules_directory(files):
    beside = os.path.dirname(os.path.dirname(files.kernel))
    for root in ("/", beside):
        path = os.path.join(root, "lib/modules", files.version)
        if os.path.exists(os.path.join(path, "modules.dep")):
            return path
    raise FileNotFoundError(f"the modules of {files.kernel}: neither in / nor in {beside}")


def drivers_image(files, modules, path):
    """An ext4 image with a directory as /lib/modules has it, of the few modules wanted."""
    tree = os.path.join(files.directory, "drivers")
    done = subprocess.run(["modprobe", "-d", modules.removesuffix("/lib/modules/" + files.version)
                           or "/", "-S", files.version, "-a", "-D", *DRIVERS], check=True,
                          capture_output=True, text=True)
    wanted = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("insmod")]
    wanted += [os.path.join(modules, name) for name in os.listdir(modules)
               if name.startswith("modules.")]
    for source in wanted:
        target = os.path.join(tree, files.version, os.path.relpath(source, modules))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copyfile(source, target)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", tree, path, "32M"],
                   check=True, stdout=subprocess.DEVNULL,
                   env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"})


def make_pieces(files, fixed):
    """Beside the list, under the names that it has."""
    directory = os.path.join(files.directory, "commands")
    os.mkdir(directory)
    modules = modules_directory(files)
    for name, target in (("debian", files.debian), ("kernel", files.kernel),
                         ("modules", modules)):
        os.symlink(target, os.path.join(directory, name))
    drivers_image(files, modules, os.path.join(directory, "drivers.img"))
    for name, data in (("work.img", bytes(32 * MIB)), ("fixed.img", fixed)):
        files.new(os.path.join("commands", name), data)
    shutil.copy(LIST, directory)
    return directory


def run_list(files, directory):
    """Each test's element of the report, by its name."""
    env = files.environment() | {"CORRAL_TEST_WORD": "two words"}
    done = subprocess.run(
        [files.corral, "ci", "commands.json", "--jobs", "1", "--junit", "report.xml",
         "--keep-logs", "logs"], cwd=directory, env=env, timeout=4 * LIMIT,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    check(done.returncode in (0, 1),
          f"corral ci ended with {done.returncode}: {done.stdout}{done.stderr}")
    report = xml.etree.ElementTree.parse(os.path.join(directory, "report.xml"))
    return {case.get("name"): case for case in report.iter("testcase")}


def said(directory, name):
    with open(os.path.join(directory, "logs", name + ".out"), encoding="utf-8") as file:
        return file.read()


def no_warnings(directory):
    text = KNOWN.sub("", said(directory, "commands-devices"))
    found = [line for line in text.splitlines() if re.match(r"<[0-4]>\[", line)]
    check(not found, "the kernel warns of:\n" + "\n".join(found))


def data_in_file(directory, _fixed):
    with open(os.path.join(directory, "work.img"), "rb") as file:
        file.seek(24 * MIB)
        found = hashlib.md5(file.read(3 * MIB)).hexdigest()
    wrote = said(directory, "commands-fio").split()[-2]
    check(found == wrote, f"the guest wrote data with the sum {wrote}, in the file is {found}")


def file_after_discard(directory, _fixed):
    path = os.path.join(directory, "work.img")
    empty = bytes(MIB)
    with open(path, "rb") as file:
        holds = [file.read(MIB) != empty for _ in range(28)]
    check(not any(holds[:12]), f"discarded blocks hold data: {holds}")
    check(not any(holds[14:16]), f"the file holds data where zeroes belong: {holds}")
    check(all(holds[12:14] + holds[16:27]), f"data beside the discarded is gone: {holds}")
    kept = os.stat(path).st_blocks * 512
    check(kept <= 21 * MIB, f"the discard of 12 of 32 MiB left {kept} bytes in the file")


def file_still_fixed(directory, fixed):
    with open(os.path.join(directory, "fixed.img"), "rb") as file:
        check(file.read() == fixed, "the file of the read-only disk has changed")
    sums = said(directory, "commands-discard-readonly").split()
    check(hashlib.md5(fixed).hexdigest() in sums, "the guest reads other data than the file holds")


# What the host sees of a test that has passed.
AFTER = {"commands-devices": (), "commands-fio": (data_in_file,),
         "commands-discard-readonly": (file_after_discard, file_still_fixed)}


@scenario("commands", *NAMES, "commands-dmesg")
def commands(files, report):
    fixed = os.urandom(MIB)
    directory = make_pieces(files, fixed)
    results = run_list(files, directory)
    for name in NAMES:
        with report.case(name):
            failure = results[name].find("failure")
            if failure is None:
                failure = results[name].find("error")
            check(failure is None, "" if failure is None else failure.get("message") + "\n"
                  + "".join(part.text or "" for part in results[name]))
            for look in AFTER[name]:
                look(directory, fixed)
        report.note(f"its guest: {results[name].get('time')} s")
    with report.case("commands-dmesg"):
        no_warnings(directory)

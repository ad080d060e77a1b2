# SPDX-License-Identifier: Apache-2.0
"""Boots Debian's stock cloud kernel under Corral and under QEMU microvm, in turns: time to /init and to
power-off, exits to user space by reason. Runs on this host where its KVM can, in the emulated host of
tools/lab where not; then this file is also the command run in there, with a JSON file that says what to
do and takes what was measured."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

import core
from core import KVM_EXIT, Group, Unavailable, corral, count_events, kvm_is_hardware, need_kvm, qemu_microvm, run, say

NAME = "linux-boot"
ABOUT = "a stock kernel to /init and to power-off, against QEMU microvm; in tools/lab if KVM needs it (minutes)"
RUNS = 3

MEMORY_MIB = 256
APPEND = "console=ttyS0 panic=-1"
WORD = "corral.hello"
OURS, QEMU = "corral run", "QEMU microvm"
INIT, OFF = "exec to /init", "exec to power-off"
MARK = b"Run /init as init process"
EXITS = "exits to user space"
NOT_SERIAL = "but for the serial port"
REASONS = {2: "other port", 6: "MMIO", 5: "halt", 10: "interrupted", 7: "irq window", 24: "system event"}
SERIAL = "kvm:kvm_pio/port>=0x3f8&&port<=0x3ff"
BOOT_LIMIT_S = 180


def commands(files):
    # Without a clock chip the kernel waits for one for seconds; Corral's board has one too.
    qemu = qemu_microvm(files["kernel"], MEMORY_MIB, acpi=True, pcie=True, rtc=True)
    qemu += ["-smp", "1", "-initrd", files["initrd"], "-append", f"{APPEND} {WORD}",
             "-drive", f"if=none,id=disk,format=raw,file={files['disk']}",
             "-device", "virtio-blk-pci,disable-legacy=on,drive=disk"]
    ours = [corral(), "run", "--kernel", files["kernel"], "--initrd", files["initrd"], "--append", WORD, "--cpus", "1",
            "--memory", f"{MEMORY_MIB}M", "--rng", "off", "--disk", files["disk"]]
    return {QEMU: qemu, OURS: ours}


def boot(command):
    """Returns seconds to /init and to the end, and the command line that the kernel says it was given."""
    text, init = b"", None
    start = time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        try:
            while True:
                chunk = os.read(process.stdout.fileno(), 65536)
                if not chunk:
                    break
                text += chunk
                if init is None and MARK in text:
                    init = time.monotonic() - start
                if time.monotonic() - start > BOOT_LIMIT_S:
                    raise Unavailable(f"{command[0]} did not boot in {BOOT_LIMIT_S} s")
            status = process.wait()
            off = time.monotonic() - start
            errors = process.stderr.read().decode(errors="replace").strip()
        finally:
            process.kill()
    if status != 0 or init is None or b"Hello from the guest" not in text:
        tail = (errors or text.decode(errors="replace").strip() or "nothing").splitlines()[-1]
        raise Unavailable(f"{command[0]} did not boot the kernel (status {status}); its last line: {tail}")
    line = next((part for part in text.splitlines() if b"Command line: " in part), b"")
    return init, off, line.split(b"Command line: ")[-1].strip().decode(errors="replace")


def exits(command, directory):
    """By reason; those for the serial port, which the length of the kernel's log decides, apart."""
    by_reason = {f"{KVM_EXIT}/reason=={number}": name for number, name in REASONS.items()}
    counts, _ = count_events([KVM_EXIT, SERIAL, *by_reason], command, os.path.join(directory, "events"))
    reasons = {name: counts[event] for event, name in by_reason.items()}
    reasons["other"] = counts[KVM_EXIT] - sum(reasons.values())
    reasons["serial port"] = counts[SERIAL]
    reasons["other port"] -= counts[SERIAL]
    return {"total": counts[KVM_EXIT], **{name: n for name, n in reasons.items() if n}}


def boots(files, runs, directory):
    """What the emulated host is asked to do. Its first boots put the files into its memory: not counted."""
    need_kvm()
    programs, result = commands(files), {"times": [], "exits": {}, "lines": {}, "missing": []}
    for who, command in programs.items():
        say(f"{NAME}: {who}, a first time, counting exits")
        try:
            result["exits"][who] = exits(command, directory)
        except Unavailable as why:
            result["missing"].append(f"exits of {who} were not counted: {why}")
            boot(command)
    for i in range(runs):
        say(f"{NAME}: run {i + 1} of {runs}")
        for who, command in programs.items():
            init, off, result["lines"][who] = boot(command)
            result["times"].append([who, init, off])
    return result


def in_lab(files, runs, directory):
    order = os.path.join(directory, "order.json")
    with open(order, "w", encoding="utf-8") as file:
        json.dump({"files": files, "runs": runs}, file)
    limit = 300 + (runs + 1) * 2 * 60
    lab = os.path.join(core.TREE, "tools/lab")
    environment = {**os.environ, "CORRAL_BUILD": core.BUILD}
    with subprocess.Popen([lab, "--timeout", str(limit), "--share", directory, "--", sys.executable, "-B",
                           os.path.realpath(__file__), order], stdin=subprocess.DEVNULL, env=environment) as process:
        try:
            status = process.wait()
        finally:
            process.terminate()  # it ends its emulated host; nothing if it has ended
    if status != 0:
        raise Unavailable(f"tools/lab ended with status {status}")
    with open(order, encoding="utf-8") as file:
        return json.load(file)


def images(directory):
    maker = os.path.join(core.TREE, "tools/guest-image")
    disk = os.path.join(directory, "disk")
    files = {name: run([maker, name]).strip() for name in ("kernel", "initrd")}
    run([maker, "rootfs", "--to", disk])
    return {**files, "disk": disk}


def fill(group, result):
    for who, init, off in result["times"]:
        group.add(INIT, "s", who, init)
        group.add(OFF, "s", who, off)
    for what in (INIT, OFF):
        group.bar(f"{what}, of QEMU microvm's", "<=", 1.0, group.median(what, OURS) / group.median(what, QEMU),
                  line=(what, group.median(what, QEMU)))
    for text in result["missing"]:
        group.lacks(text)
    for who, counts in result["exits"].items():
        total = counts.pop("total")
        group.add(EXITS, "", who, total)
        group.add(NOT_SERIAL, "", who, total - counts.get("serial port", 0))
        group.method.append(f"Exits of {who} by reason: " +
                            ", ".join(f"{n} {name}" for name, n in sorted(counts.items(), key=lambda x: -x[1])) + ".")
    group.figures.sort(key=lambda f: [INIT, OFF, EXITS, NOT_SERIAL].index(f.what))
    if len(result["exits"]) == 2:
        group.bar("exits to user space, of QEMU microvm's", "<", 1.0,
                  group.median(EXITS, OURS) / group.median(EXITS, QEMU), line=(EXITS, group.median(EXITS, QEMU)))
    if len(set(result["lines"].values())) != 1:
        group.lacks(f"the kernels were given different command lines: {result['lines']}")


def measure(runs, _directory):
    group = Group(NAME, "Linux: a stock kernel to /init and to power-off")
    hardware = kvm_is_hardware()
    group.method = [
        "Debian's cloud kernel (bzImage) and an initrd, the same files, command line, one CPU, "
        f"{MEMORY_MIB} MiB, serial console into a pipe, one virtio disk over PCI; taking turns.",
        "On this host's KVM." if hardware else "In one start of the emulated host of tools/lab, on its KVM (AMD SVM in "
        "software): seconds mean nothing by themselves, ratios do.",
        "Exits are the kernel's kvm:kvm_userspace_exit, counted in a boot of their own.",
    ]
    with tempfile.TemporaryDirectory(prefix="corral-bench-") as directory:
        files = images(directory)
        fill(group, boots(files, runs, directory) if hardware else in_lab(files, runs, directory))
    if hardware:
        group.bar("exec to /init on real hardware", "<=", 0.125, group.median(INIT, OURS), "s")
    return group


def main(path):
    with open(path, encoding="utf-8") as file:
        order = json.load(file)
    files = order["files"]
    try:
        with tempfile.TemporaryDirectory() as directory:  # in memory, there
            files["disk"] = shutil.copy(files["disk"], directory)
            result = boots(files, order["runs"], directory)
    except Unavailable as why:
        say(f"{NAME}: {why}")
        return 1
    with open(path, "w", encoding="utf-8") as file:
        json.dump(result, file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

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
LAB_RETRIES = 4


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


def boots(files, runs, directory, result, save):
    """Adds what is missing to `result`, and saves it after each step: an emulated host may lock up, and
    the next one goes on from there. The first boots put the files into its memory: their time is not
    counted."""
    need_kvm()
    programs = commands(files)
    result["starts"] += 1
    save()
    for who, command in programs.items():
        if who in result["exits"] or who in result["missing"]:
            continue
        say(f"{NAME}: {who}, a first time, counting exits")
        try:
            result["exits"][who] = exits(command, directory)
        except Unavailable as why:
            result["missing"][who] = f"exits of {who} were not counted: {why}"
        save()
    while len(result["times"]) < runs:
        say(f"{NAME}: run {len(result['times']) + 1} of {runs}")
        turn = {}
        for who, command in programs.items():
            init, off, result["lines"][who] = boot(command)
            turn[who] = [init, off]
        result["times"].append(turn)
        save()


def nothing_yet():
    return {"starts": 0, "times": [], "exits": {}, "lines": {}, "missing": {}}


def load(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def store(path, value):
    """Whole or not at all, and out of the emulated host's memory."""
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".new", path)


def in_lab(files, runs, directory):
    order, found = os.path.join(directory, "order.json"), os.path.join(directory, "found.json")
    store(order, {"files": files, "runs": runs})
    store(found, nothing_yet())
    limit = 300 + (runs + 1) * 2 * 60
    command = [os.path.join(core.TREE, "tools/lab"), "--timeout", str(limit), "--retries", str(LAB_RETRIES),
               "--share", directory, "--", sys.executable, "-B", os.path.realpath(__file__), order, found]
    environment = {**os.environ, "CORRAL_BUILD": core.BUILD}
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment) as process:
        try:
            status = process.wait()
        finally:
            process.terminate()  # it ends its emulated host; nothing if it has ended
    result = load(found)
    if not result["times"]:
        raise Unavailable(f"tools/lab ended with status {status} before anything was measured")
    if status != 0:
        result["missing"]["lab"] = (f"tools/lab ended with status {status}: {len(result['times'])} of {runs} runs "
                                    "were done")
    return result


def on_host(files, runs, directory):
    result = nothing_yet()
    boots(files, runs, directory, result, lambda: None)
    return result


def images(directory):
    maker = os.path.join(core.TREE, "tools/guest-image")
    disk = os.path.join(directory, "disk")
    files = {name: run([maker, name]).strip() for name in ("kernel", "initrd")}
    run([maker, "rootfs", "--to", disk])
    return {**files, "disk": disk}


def fill(group, result):
    for turn in result["times"]:
        for who, (init, off) in turn.items():
            group.add(INIT, "s", who, init)
            group.add(OFF, "s", who, off)
    for what in (INIT, OFF):
        group.bar(f"{what}, of QEMU microvm's", "<=", 1.0, group.median(what, OURS) / group.median(what, QEMU),
                  line=(what, group.median(what, QEMU)))
    for text in result["missing"].values():
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
        "On this host's KVM." if hardware else "In the emulated host of tools/lab, on its KVM (AMD SVM in "
        "software): seconds mean nothing by themselves, ratios do.",
        "Exits are the kernel's kvm:kvm_userspace_exit, counted in a boot of their own.",
    ]
    with tempfile.TemporaryDirectory(prefix="corral-bench-") as directory:
        files = images(directory)
        result = on_host(files, runs, directory) if hardware else in_lab(files, runs, directory)
    fill(group, result)
    if result["starts"] > 1:
        group.method.append(f"The emulated host locked up and was started {result['starts']} times; each run is "
                            "whole, in one start.")
    if hardware:
        group.bar("exec to /init on real hardware", "<=", 0.125, group.median(INIT, OURS), "s")
    return group


def main(order_path, found_path):
    order, result = load(order_path), load(found_path)
    files = order["files"]
    try:
        with tempfile.TemporaryDirectory() as directory:  # in memory, there
            files["disk"] = shutil.copy(files["disk"], directory)
            boots(files, order["runs"], directory, result, lambda: store(found_path, result))
    except Unavailable as why:
        say(f"{NAME}: {why}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

# SPDX-License-Identifier: Apache-2.0
"""From nothing to the status of one command in a guest of its own: `corral run --rootfs … -- true`
against QEMU microvm with the same kernel, root, memory and CPU, which runs the same command and powers
off; both without the kernel's messages. Runs on this host where its KVM can, in the emulated host of
tools/lab where not; then this file is also the command run in there, with a JSON file that says what to
do and takes what was measured."""

import base64
import json
import os
import subprocess
import sys
import tempfile
import time

import core
from core import Group, Unavailable, corral, kvm_is_hardware, need_kvm, qemu_microvm, run, say
from linux_boot import load, store

NAME = "ci-true"
ABOUT = "`corral run … -- true` against QEMU microvm; in tools/lab if KVM needs it (minutes)"
RUNS = 5

MEMORY_MIB = 256
OURS, QEMU, TUNED = "corral run -- true", "QEMU microvm", "QEMU, our kernel's words"
TIME = "exec to the command's status"
LIMIT_S = 180
LAB_RETRIES = 4
COMMAND = "true"


def commands(files):
    """QEMU's guest has its drivers and /init from tools/guest-image, and the root's own first process,
    which runs the command and powers off at once."""
    ours = ["--kernel", files["kernel"], "--rootfs", files["root"], "--cpus", "1", "--memory", f"{MEMORY_MIB}M", "--",
            COMMAND]
    words = json.loads(run([corral(), "run", "--dry-run", *ours]))["append"]
    return {QEMU: qemu(files, "console=ttyS0 panic=-1 quiet"),
            OURS: [corral(), "run", *ours],
            TUNED: qemu(files, words)}


def qemu(files, words):
    command = base64.b64encode(COMMAND.encode()).decode()
    return qemu_microvm(files["kernel"], MEMORY_MIB, acpi=True, pcie=True, rtc=True) + [
        "-smp", "1", "-initrd", files["initrd"], "-append", f"{words} root=/dev/vda ro corral.run={command}",
        "-drive", f"if=none,id=disk,format=raw,readonly=on,file={files['root']}",
        "-device", "virtio-blk-pci,disable-legacy=on,drive=disk"]


def once(who, command):
    start = time.monotonic()
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{who} did not end in {LIMIT_S} s") from None
    seconds = time.monotonic() - start
    said = (done.stdout + done.stderr).decode(errors="replace").strip()
    # QEMU's own status says nothing of the command's.
    if done.returncode != 0 or (who != OURS and "corral: status 0" not in said):
        raise Unavailable(f"{who} ended with status {done.returncode}; its last line: {(said or '-').splitlines()[-1]}")
    return seconds


def turns(files, runs, result, save):
    """The first turn puts the files into the host's memory: its time is not counted. An emulated host may
    lock up, and the next one goes on from there."""
    need_kvm()
    result["starts"] += 1
    save()
    programs = commands(files)
    for who, command in programs.items():
        once(who, command)
    while len(result["times"]) < runs:
        say(f"{NAME}: run {len(result['times']) + 1} of {runs}")
        result["times"].append({who: once(who, command) for who, command in programs.items()})
        save()


def in_lab(files, runs, directory):
    order, found = os.path.join(directory, "order.json"), os.path.join(directory, "found.json")
    store(order, {"files": files, "runs": runs})
    store(found, {"starts": 0, "times": []})
    command = [os.path.join(core.TREE, "tools/lab"), "--timeout", str(300 + (runs + 1) * 3 * 40), "--retries",
               str(LAB_RETRIES), "--share", directory, "--", sys.executable, "-B", os.path.realpath(__file__),
               order, found]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL,
                          env={**os.environ, "CORRAL_BUILD": core.BUILD}) as process:
        try:
            status = process.wait()
        finally:
            process.terminate()  # it ends its emulated host; nothing if it has ended
    result = load(found)
    if not result["times"]:
        raise Unavailable(f"tools/lab ended with status {status} before anything was measured")
    if status != 0:
        result["lab"] = f"tools/lab ended with status {status}: {len(result['times'])} of {runs} runs were done"
    return result


def measure(runs, _directory):
    group = Group(NAME, "One command in a guest of its own")
    hardware = kvm_is_hardware()
    group.method = [
        "Debian's cloud kernel (bzImage) and one busybox root on ext4, the same files, one CPU, "
        f"{MEMORY_MIB} MiB, \"quiet\"; taking turns. QEMU's guest gets drivers and /init in an initrd, runs the "
        "command from the root's first process and powers off; Corral makes its own initrd each time.",
        "Corral gives its guest's kernel words that save time (--dry-run shows them); QEMU's has them too in the third "
        "line, which has no bar.",
        "On this host's KVM." if hardware else "In the emulated host of tools/lab, on its KVM (AMD SVM in "
        "software): seconds mean nothing by themselves, ratios do.",
    ]
    maker = os.path.join(core.TREE, "tools/guest-image")
    files = {name: run([maker, name]).strip() for name in ("kernel", "initrd")}
    files["root"] = run([maker, "rootfs"]).strip()
    with tempfile.TemporaryDirectory(prefix="corral-bench-") as directory:
        if hardware:
            result = {"starts": 0, "times": []}
            turns(files, runs, result, lambda: None)
        else:
            result = in_lab(files, runs, directory)
    for turn in result["times"]:
        for who, seconds in turn.items():
            group.add(TIME, "s", who, seconds)
    group.bar("one command, of QEMU microvm's time", "<=", 0.5, group.median(TIME, OURS) / group.median(TIME, QEMU),
              line=(TIME, 0.5 * group.median(TIME, QEMU)))
    if "lab" in result:
        group.lacks(result["lab"])
    if result["starts"] > 1:
        group.method.append(f"The emulated host locked up and was started {result['starts']} times; each run is "
                            "whole, in one start.")
    return group


def main(order_path, found_path):
    order, result = load(order_path), load(found_path)
    try:
        turns(order["files"], order["runs"], result, lambda: store(found_path, result))
    except Unavailable as why:
        say(f"{NAME}: {why}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

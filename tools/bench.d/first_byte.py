# SPDX-License-Identifier: Apache-2.0
"""From the exec of a VMM to the first byte its guest prints: a bare-metal guest of which the first
instructions print it. first-byte-clock.c holds the clock, the same for each program."""

from core import Group, corral, corral_vmm, guest, helper, need_kvm, qemu_microvm, run

NAME = "first-byte"
ABOUT = "exec of the VMM to the first byte of a bare-metal guest, and what the sandbox costs of it"
RUNS = 25

WHAT = "exec to first guest byte"
CPU = "CPU time, start to end"
OURS, WHOLE, BARE = "corral-vmm", "corral run", "corral-vmm, sandbox off"
QBOOT, ACPI = "QEMU microvm, no ACPI", "QEMU microvm, ACPI"


def commands():
    clock, elf = helper("first-byte-clock"), guest("first-byte")
    corral_run = [corral(), "run", "--kernel", elf, "--memory", "64M", "--rng", "off"]
    vmm = [clock, "--vmm", corral_vmm(), "--"]
    return {
        OURS: vmm + corral_run,
        QBOOT: [clock, "--kill", "--"] + qemu_microvm(elf, 64, acpi=False),
        BARE: vmm + corral_run + ["--sandbox", "off"],
        ACPI: [clock, "--kill", "--"] + qemu_microvm(elf, 64),
        WHOLE: [clock, "--"] + corral_run,
    }


def measure(runs, _directory):
    need_kvm()
    group = Group(NAME, "Start: exec to the first byte of the guest")
    group.method = [
        "The guest is first-byte.elf (PVH, 64 MiB, one CPU, serial port only); its first instructions print.",
        "The clock starts at exec and stops when the byte can be read from the pipe; for corral-vmm it starts at "
        "the exec that corral run does, and the byte comes through corral run.",
        "The programs take turns; ratios are to QEMU's quickest set-up. CPU time is the whole process tree's; "
        "QEMU is killed at the byte, Corral's includes powering off and corral run.",
    ]
    programs = commands()
    for who in (QBOOT, ACPI, OURS, WHOLE, BARE):  # the order in the tables
        group.figure(WHAT, "ms", who)
    for command in programs.values():
        run(command)  # its files are in memory from here on
    for i in range(runs):
        if i % 5 == 0:
            group.progress(i, runs)
        for who, command in programs.items():
            first, _, cpu = run(command).split()
            group.add(WHAT, "ms", who, int(first) / 1e6)
            if who in (QBOOT, ACPI, WHOLE):
                group.add(CPU, "ms", who, int(cpu) / 1e3)
    judge(group)
    return group


def judge(group):
    group.figures.sort(key=lambda f: (f.what != WHAT, [QBOOT, ACPI, OURS, WHOLE, BARE].index(f.who)))
    peer = min(group.median(WHAT, QBOOT), group.median(WHAT, ACPI))
    ours = group.median(WHAT, OURS)
    group.bar("corral-vmm's time to the first byte, of QEMU microvm's quickest", "<=", 0.1, ours / peer,
              line=(WHAT, peer / 10))
    group.bar("what the sandbox adds to it", "<=", 2.0, ours - group.median(WHAT, BARE), "ms")

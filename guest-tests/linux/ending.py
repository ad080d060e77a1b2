# SPDX-License-Identifier: Apache-2.0
"""
Guests that end badly: a panic that only the console tells of, in a VM nobody watches, and resets
without end.
"""

import base64
import json
import os
import struct
import subprocess

from machine import LIMIT, Failure
from suite import check, scenario

CRASH = "busybox rmmod pvpanic_mmio; busybox rmmod pvpanic_pci; busybox rmmod pvpanic; " \
        "cut -d ' ' -f 1 /proc/modules; echo c >/proc/sysrq-trigger"

# 32-bit code: mov dx, 0x600; mov al, 1; out dx, al; hlt; jmp to the hlt. A write to the FADT's reset
# register.
RESET = bytes.fromhex("66ba0006 b001 ee f4 ebfd")


def corral(files, *words):
    try:
        return subprocess.run([files.corral, *words], env=files.environment(), capture_output=True,
                              text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        raise Failure(f"corral {words[0]} has not ended within {LIMIT} s") from None


@scenario("panic", "panic-console", "panic-sentence", "panic-logs")
def panic(files, report):
    name = f"linux-panic-{os.getpid()}"
    words = base64.b64encode(CRASH.encode()).decode()
    ended = None
    with report.case("panic-console"):
        done = corral(files, "run", "--detach", "--name", name, "--kernel", files.kernel,
                      "--initrd", files.initrd, "--memory", "256M", "--append", f"corral.run={words}")
        check(done.returncode == 0, f"corral run --detach: {done.stderr}")
        try:
            ended = corral(files, "wait", name)
        finally:
            log = corral(files, "logs", name).stdout.replace("\r", "")
            if ended is None:
                corral(files, "kill", name)
                report.note(log[-1500:])
        check(ended.returncode == 4, f"corral wait ended with {ended.returncode}, not 4: "
                                     f"{ended.stderr}\n{log[-1500:]}")
        check("\npvpanic" not in log, "pvpanic was still there: this tests nothing")
    with report.case("panic-sentence"):
        with open(os.path.join(files.run_directory(), name, "exit.json"), encoding="utf-8") as file:
            record = json.load(file)
        check(record["reason"] == "panic" and "sysrq triggered crash" in record["text"],
              f"the record says {record}")
        check(ended and record["text"] in ended.stderr, f"corral wait says {ended and ended.stderr}")
    with report.case("panic-logs"):
        for words in ("Linux version " + files.version, "Kernel panic - not syncing: sysrq",
                      "Call Trace:", "sysrq_handle_crash"):
            check(words in log, f"\"{words}\" is not in the log:\n{log[-1500:]}")


def elf(code, entry=1 << 20):
    """An ELF file of some bytes of code that a PVH note starts."""
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", entry)
    start = 64 + 2 * 56
    total = start + len(note) + len(code)
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, entry, 64, 0, 0, 64,
                       56, 2, 0, 0, 0)
    at = start + len(note)
    load = struct.pack("<IIQQQQQQ", 1, 5, at, entry, entry, len(code), len(code), 1)
    notes = struct.pack("<IIQQQQQQ", 4, 4, start, 0, 0, len(note), len(note), 4)
    assert len(head + load + notes + note + code) == total
    return head + load + notes + note + code


@scenario("resets", "reset-loop", "reset-exit")
def resets(files, report):
    kernel = files.new("reset.elf", elf(RESET))
    with report.case("reset-loop"):
        done = corral(files, "run", "--name", "loop", "--kernel", kernel, "--memory", "16M",
                      "--console", "none")
        check(done.returncode == 5, f"it ended with {done.returncode}, not 5: {done.stderr}")
        check("(reset-loop)" in done.stderr, f"it says {done.stderr}")
    with report.case("reset-exit"):
        done = corral(files, "run", "--name", "loop", "--kernel", kernel, "--memory", "16M",
                      "--console", "none", "--on-reset", "exit")
        check(done.returncode == 3, f"it ended with {done.returncode}, not 3: {done.stderr}")

# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: where the programs are, groups of figures with their bars, and the
few ways in which a program is run and watched. A benchmark fills one Group; report.py shows it."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys

TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
BUILD = os.path.abspath(os.environ.get("CORRAL_BUILD") or os.path.join(TREE, "build"))
KVM_EXIT = "kvm:kvm_userspace_exit"
SYSTEM_CALL = "raw_syscalls:sys_enter"


class Unavailable(Exception):
    """A benchmark, or a part of one, cannot run here; the text says why and what to do."""


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Figure:
    """The same thing measured several times of one program."""

    def __init__(self, what, unit, who):
        self.what, self.unit, self.who, self.values = what, unit, who, []

    @property
    def median(self):
        return statistics.median(self.values)

    def as_json(self):
        return {"what": self.what, "unit": self.unit, "who": self.who, "median": self.median,
                "min": min(self.values), "max": max(self.values), "values": self.values}


class Group:
    """One benchmark's figures. `peer` is the name that ratios are taken to."""

    def __init__(self, name, title):
        self.name, self.title = name, title
        self.method, self.figures, self.bars, self.missing = [], [], [], []

    def figure(self, what, unit, who):
        for figure in self.figures:
            if (figure.what, figure.who) == (what, who):
                return figure
        self.figures.append(Figure(what, unit, who))
        return self.figures[-1]

    def add(self, what, unit, who, value):
        self.figure(what, unit, who).values.append(value)

    def median(self, what, who):
        return self.figure(what, "", who).median

    def ratio(self, figure):
        """To the first figure of a peer for the same thing; None for the peer itself."""
        peer = next((f for f in self.figures if f.what == figure.what and is_peer(f.who)), None)
        if peer is None or peer is figure or not peer.median:
            return None
        return figure.median / peer.median

    def bar(self, text, relation, limit, value, unit="", line=None):
        """line: (what, value) where a chart may draw the limit."""
        met = {"<=": value <= limit, "<": value < limit, ">=": value >= limit}[relation]
        self.bars.append({"text": text, "relation": relation, "limit": limit, "value": value,
                          "unit": unit, "met": met, "line": line})

    def lacks(self, text):
        self.missing.append(text)
        say(f"{self.name}: {text}")

    def progress(self, run, runs):
        say(f"{self.name}: run {run + 1} of {runs}")

    def as_json(self):
        return {"name": self.name, "title": self.title, "method": self.method,
                "figures": [f.as_json() for f in self.figures if f.values],
                "bars": self.bars, "missing": self.missing}


def is_peer(who):
    return who.lower().startswith("qemu")


def built(*names):
    """The first of these files that is in the build."""
    for name in names:
        path = os.path.join(BUILD, name)
        if os.path.exists(path):
            return path
    raise Unavailable(f"{names[0]} is not in {BUILD}: build the tree (meson setup build && ninja -C build) "
                      "or name the build in CORRAL_BUILD")


def corral():
    path = built("corral", "mgmt/local/corral")
    os.environ["CORRAL_VMM"] = corral_vmm()
    return path


def corral_vmm():
    return built("corral-vmm", "vmm/corral-vmm")


def guest(name):
    return built(f"guest-tests/{name}.elf")


def helper(name):
    return built(f"tools/{name}")


def need(program, package):
    path = shutil.which(program)
    if not path:
        raise Unavailable(f"{program} is not installed: apt-get install {package}")
    return path


def build_type():
    try:
        with open(os.path.join(BUILD, "meson-info/intro-buildoptions.json"), encoding="utf-8") as file:
            options = {option["name"]: option["value"] for option in json.load(file)}
    except (OSError, ValueError):
        return "unknown"
    words = [options.get("buildtype", "unknown")]
    sanitizer = options.get("b_sanitize", "none")
    if sanitizer not in ("none", "", []):
        words.append(f"sanitizer {sanitizer}")
    return ", ".join(words)


def kvm_is_hardware():
    """VT-x or AMD-V is under /dev/kvm, so that it runs stock kernels."""
    if not any(os.path.isdir(f"/sys/module/{module}") for module in ("kvm_intel", "kvm_amd")):
        return False
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return re.search(r"\b(vmx|svm)\b", file.read()) is not None


def need_kvm():
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        raise Unavailable("/dev/kvm is not there or not yours to open: see corral doctor")


def qemu_microvm(kernel, memory, acpi=True, pcie=False, rtc=False):
    """QEMU as small and quick as its options make it. A para-virtual KVM refuses a MSR of -cpu host."""
    machine = ("microvm,accel=kvm,x-option-roms=off,pit=off,pic=off,isa-serial=on,auto-kernel-cmdline=off,"
               f"rtc={'on' if rtc else 'off'},acpi={'on' if acpi else 'off'}")
    if pcie:
        machine += ",pcie=on"
    cpu = "host" if kvm_is_hardware() else "host,-arch-capabilities"
    return [need("qemu-system-x86_64", "qemu-system-x86"), "-M", machine, "-cpu", cpu, "-m", str(memory),
            "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
            "-kernel", kernel]


def run(command, **more):
    """Returns what it printed. What it says on standard error is shown if it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, errors="replace", check=False, **more)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise Unavailable(f"{os.path.basename(command[0])} ended with status {done.returncode}: {last}")
    return done.stdout


def count_events(events, command, path, **more):
    """Runs a command; returns how often each kernel event happened in it and what it printed."""
    output = run([helper("event-count"), path, *events, "--", *command], **more)
    with open(path, encoding="utf-8") as file:
        counts = {name: int(count) for name, count in (line.rsplit(" ", 1) for line in file)}
    return counts, output

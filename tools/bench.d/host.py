# SPDX-License-Identifier: Apache-2.0
"""Facts of the host that figures depend on, and none that say whose it is."""

import glob
import os
import platform
import re
import shutil
import subprocess
import time

import core


def read(path, default=""):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return default


def first_line(command):
    if not shutil.which(command[0]) and not os.path.isabs(command[0]):
        return "not installed"
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              text=True, errors="replace", timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as why:
        return f"cannot tell: {why}"
    return (done.stdout.strip().splitlines() or ["unknown"])[0]


def cpu():
    text = read("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)$", text, re.M) or re.search(r"^CPU part\s*: (.*)$", text, re.M)
    mhz = re.search(r"^cpu MHz\s*: (.*)$", text, re.M)
    words = [model[1] if model else platform.machine(), f"{os.cpu_count()} CPUs"]
    if mhz:
        words.append(f"{float(mhz[1]):.0f} MHz now")
    governors = {read(path) for path in glob.glob("/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")}
    if governors:
        words.append(f"governor {', '.join(sorted(governors))}")
    return ", ".join(words)


def virtual():
    if not re.search(r"^flags\s*:.*\bhypervisor\b", read("/proc/cpuinfo"), re.M):
        return "no: bare metal"
    return f"yes ({first_line(['systemd-detect-virt'])})" if shutil.which("systemd-detect-virt") else "yes"


def kvm():
    if not os.path.exists("/dev/kvm"):
        return "no /dev/kvm"
    modules = sorted(os.path.basename(path) for path in glob.glob("/sys/module/kvm_*"))
    words = [", ".join(modules) or "built in"]
    for module in modules:
        nested = read(f"/sys/module/{module}/parameters/nested")
        if nested:
            words.append(f"{module} nested={nested}")
    words.append("runs stock kernels" if core.kvm_is_hardware() else "no VT-x or AMD-V under it")
    return ", ".join(words)


def memory():
    total = re.search(r"^MemTotal:\s*(\d+)", read("/proc/meminfo"), re.M)
    thp = re.search(r"\[(.*)\]", read("/sys/kernel/mm/transparent_hugepage/enabled"))
    return (f"{int(total[1]) // 1024} MiB" if total else "?") + (f", huge pages {thp[1]}" if thp else "")


def distribution():
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)', read("/etc/os-release"), re.M)
    return found[1] if found else "?"


def corral_version():
    return first_line([core.corral_vmm(), "--version"])


def load():
    """What else runs here takes from short times more than from long ones: say so."""
    words = read("/proc/loadavg").split()[:3]
    busy = words and float(words[0]) > os.cpu_count() / 2
    warning = ": BUSY, times of a few ms are not to be trusted" if busy else ""
    return f"{' '.join(words)} on {os.cpu_count()} CPUs{warning}"


def facts():
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "CPU": cpu(),
        "memory": memory(),
        "virtual machine": virtual(),
        "KVM": kvm(),
        "kernel": f"{platform.release()} {platform.machine()}",
        "distribution": distribution(),
        "load at the start": load(),
        "priority": f"nice {os.getpriority(os.PRIO_PROCESS, 0)}",
        "Corral": f"{corral_version()}, build {core.build_type()}, commit " +
                  first_line(["git", "-C", core.TREE, "-c", "safe.directory=*", "describe", "--always", "--dirty"]),
        "QEMU": first_line(["qemu-system-x86_64", "--version"]),
        "C library": " ".join(platform.libc_ver()),
    }

# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of corral-disk share: images, and the wall time of a command."""

import os
import subprocess
import tempfile
import time

from core import Unavailable, built, need

MIB = 1 << 20


def corral_disk():
    return built("corral-disk")


def qemu_img():
    return need("qemu-img", "qemu-utils")


def directory(need_mib):
    """Memory if there is room: a disk's own speed, and what else goes to it, would be in every figure."""
    for place in ("/dev/shm", tempfile.gettempdir()):
        try:
            stat = os.statvfs(place)
        except OSError:
            continue
        if stat.f_bavail * stat.f_frsize > need_mib * MIB:
            return tempfile.TemporaryDirectory(prefix="corral-bench-", dir=place)
    raise Unavailable(f"no {need_mib} MiB are free in /dev/shm or {tempfile.gettempdir()}")


def seconds(command):
    start = time.monotonic()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                          text=True, errors="replace", check=False)
    end = time.monotonic()
    if done.returncode != 0:
        raise Unavailable(f"\"{' '.join(command[:2])}\" ended with status {done.returncode}: {done.stderr.strip()}")
    return end - start


def file_system(path):
    done = subprocess.run(["stat", "-f", "-c", "%T", path], stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout.strip() or "unknown"

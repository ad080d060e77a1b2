# SPDX-License-Identifier: Apache-2.0
"""
Debian's qemu-guest-agent in a guest, asked through `corral guest`: what it tells, commands and their
ends, frozen filesystems, an agent that is not there, one that stops.
"""

import json
import subprocess

from machine import Corral, Failure
from suite import check, scenario

PORT = "org.qemu.guest_agent.0"
AGENT_START = "chroot /mnt qemu-ga -d -m virtio-serial -p"


def debian_below(guest):
    """Debian's disk, as it is, at /mnt: programs in it run by chroot."""
    guest.run("mkdir -p /mnt && mount -t ext4 -o ro,noload /dev/vdb2 /mnt")
    for name in ("dev", "proc", "sys"):
        guest.run(f"mount --bind /{name} /mnt/{name}")
    guest.run("mount -t tmpfs none /mnt/run && mount -t tmpfs none /mnt/tmp")


def guest_verb(guest, *words, limit=120):
    """`corral guest NAME WORDS`, however it ends."""
    return subprocess.run([guest.files.corral, "guest", guest.name, *words], env=guest.env,
                          capture_output=True, timeout=limit, check=False)


def told(guest, *words):
    done = guest_verb(guest, *words)
    if done.returncode:
        raise Failure(f"corral guest {words} ended with {done.returncode}: "
                      f"{done.stderr.decode().strip()}")
    return done.stdout.decode()


def check_exec(guest):
    done = guest_verb(guest, "exec", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    check((done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n"), f"exec: {done}")
    done = guest_verb(guest, "exec", "--", "sh", "-c", "kill -9 $$")
    check(done.returncode == 137, f"killed by signal 9: {done}")
    done = guest_verb(guest, "exec", "--", "head", "-c", "1000000", "/dev/urandom")
    check(len(done.stdout) == 1000000, f"{len(done.stdout)} bytes of 1000000: {done.stderr}")
    done = guest_verb(guest, "exec", "--", "cat", "/proc/self/cmdline", "a b", "ü", "")
    check(done.stdout.split(b"\0")[2:] == ["a b".encode(), "ü".encode(), b"", b""],
          f"the words arrived as {done.stdout}")
    done = guest_verb(guest, "exec", "--", "/no/such")
    check(done.returncode == 125 and b"/no/such" in done.stderr, f"no such command: {done}")
    done = guest_verb(guest, "exec", "--timeout", "1", "--", "sleep", "100")
    check(done.returncode == 124 and b"still runs" in done.stderr, f"timeout: {done}")


def check_info(guest, files):
    text = told(guest, "info")
    for part in ("system   Debian GNU/Linux", f"kernel   {files.version}", "127.0.0.1/8", "ext4"):
        check(part in text, f"\"{part}\" is not in:\n{text}")
    info = json.loads(told(guest, "info", "--json"))
    check(info["os"]["id"] == "debian", f"the system is {info['os']}")
    check("127.0.0.1/8" in told(guest, "network"), "network does not tell the loopback's address")


@scenario("agent", "agent-absent", "agent-ping", "agent-info", "agent-exec", "agent-freeze",
          "agent-stopped")
def agent(files, report):
    disk = files.copy(files.busybox, "agent.img")
    flags = ("--memory", "512M", "--agent", "on", "--disk", disk,
             "--disk", f"{files.cloud},readonly=on")
    with Corral(files, "root=/dev/vda", flags) as guest:
        guest.ready()
        debian_below(guest)
        with report.case("agent-absent"):
            done = guest_verb(guest, "ping")
            check(done.returncode == 1 and b"does not answer" in done.stderr, f"no agent: {done}")
        with report.case("agent-ping"):
            port = guest.run(f"basename $(dirname $(grep -l {PORT} "
                             "/sys/class/virtio-ports/*/name))")
            guest.run("ip link set lo up")
            guest.run(f"{AGENT_START} /dev/{port}")
            check("answers" in told(guest, "ping"), "ping says something else")
        with report.case("agent-info"):
            check_info(guest, files)
        with report.case("agent-exec"):
            check_exec(guest)
        with report.case("agent-freeze"):
            check("frozen" in told(guest, "freeze"), "freeze says something else")
            done = guest_verb(guest, "exec", "--", "true")
            check(done.returncode == 125, f"exec while frozen: {done}")
            check("thawed" in told(guest, "thaw"), "thaw says something else")
            told(guest, "exec", "--", "true")
        with report.case("agent-stopped"):
            # Half a command of a client that died does not disturb the next.
            guest.run("kill -STOP $(pidof qemu-ga)")
            done = guest_verb(guest, "ping")
            check(done.returncode == 1 and b"does not answer" in done.stderr, f"stopped: {done}")
            guest.run("kill -CONT $(pidof qemu-ga)")
            check("answers" in told(guest, "ping"), "it does not answer again")
            guest.send("sync; poweroff -f\n")
            guest.end("power-off", 0)

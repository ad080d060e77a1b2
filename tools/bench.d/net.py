# SPDX-License-Identifier: Apache-2.0
"""Frames in and out of a Linux guest on a tap, under Corral and under QEMU microvm, with the kernel's
vhost-net on both and with it on neither: iperf3 both ways, the smallest UDP frames without offloads, round
trips, system calls a frame. All four guests run at once and are asked in turns. Runs on this host where its
KVM can, in the emulated host of tools/lab where not; in a network namespace of its own, where this file is
also the command, with a JSON file that says what to do and takes what was measured."""

import base64
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import core
from core import (SYSTEM_CALL, Group, Unavailable, corral, helper, kvm_is_hardware, need, need_kvm, qemu_microvm, run,
                  say)
from linux_boot import load, store

NAME = "net"
ABOUT = "a Linux guest's network with and without vhost, against QEMU microvm; in tools/lab if KVM needs it (minutes)"
RUNS = 8

MEMORY_MIB = 192
OURS, QEMU = "Corral", "QEMU microvm"
VHOST, TAP = "with vhost-net", "without"
MACHINES = [(QEMU, VHOST), (OURS, VHOST), (QEMU, TAP), (OURS, TAP)]
IN, OUT = "iperf3 to the guest", "iperf3 from the guest"
PPS_IN, PPS_OUT = "64-byte frames to the guest", "64-byte frames from the guest"
ROUND_TRIP = "round trip of such a frame"
CALLS = "system calls a frame"
UNITS = {IN: "Mbit/s", OUT: "Mbit/s", PPS_IN: "/s", PPS_OUT: "/s", ROUND_TRIP: "us"}
CALL_NUMBERS = {16: "ioctl", 426: "io_uring_enter", 0: "read", 1: "write", 19: "readv", 20: "writev", 7: "poll",
                271: "ppoll", 202: "futex"}
SECONDS, BLAST_MS, PINGS = 2, 1000, 200
PORT = 7100
BOOT_LIMIT_S = 240
LAB_RETRIES = 4


# The guest's files: iperf3, net-probe and the libraries they need, behind the initrd.

def libraries(program):
    for line in run([need("ldd", "libc-bin"), program]).splitlines():
        words = [word for word in line.split() if word.startswith("/")]
        if words:
            yield words[0]


def initrd_with(base, programs, path):
    """The kernel unpacks one archive after the other."""
    with tempfile.TemporaryDirectory() as tree:
        for program in programs:
            for file in (program, *libraries(program)):
                place = f"{tree}/bin/{os.path.basename(program)}" if file == program else tree + file
                os.makedirs(os.path.dirname(place), exist_ok=True)
                shutil.copy(os.path.realpath(file), place)
        names = "".join(f"{os.path.relpath(os.path.join(top, name), tree)}\n"
                        for top, folders, files in os.walk(tree) for name in folders + files)
        done = subprocess.run([need("cpio", "cpio"), "--quiet", "-o", "-H", "newc"], cwd=tree, input=names.encode(),
                              stdout=subprocess.PIPE, check=True)
    with open(base, "rb") as first, open(path, "wb") as file:
        shutil.copyfileobj(first, file)
        file.write(b"\0" * (-file.tell() % 4) + done.stdout)


class Guest:
    """One of the four. Its tap and its addresses have its number."""

    def __init__(self, number, files, directory):
        self.who, self.mode = MACHINES[number]
        self.tap, self.host, self.address = f"tap{number}", f"10.80.{number}.1", f"10.80.{number}.2"
        self.output = os.path.join(directory, f"console{number}")
        script = (f"ip addr add {self.address}/24 dev eth0 && ip link set eth0 up && "
                  f"{{ iperf3 -s >/dev/null & exec net-probe serve {PORT}; }}")
        words = f"quiet corral.run={base64.b64encode(script.encode()).decode()}"
        run(["ip", "tuntap", "add", "dev", self.tap, "mode", "tap", "vnet_hdr"])
        run(["ip", "addr", "add", f"{self.host}/24", "dev", self.tap])
        run(["ip", "link", "set", self.tap, "up"])
        vhost = "on" if self.mode == VHOST else "off"
        command = {QEMU: self.qemu, OURS: self.ours}[self.who](files, words, vhost)
        with open(self.output, "wb") as file:
            self.process = subprocess.Popen(  # pylint: disable=consider-using-with # ended by `end`
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)

    def ours(self, files, words, vhost):
        return [corral(), "run", "--kernel", files["kernel"], "--initrd", files["initrd"], "--append", words,
                "--cpus", "1", "--memory", f"{MEMORY_MIB}M", "--rng", "off", "--net", f"tap={self.tap},vhost={vhost}"]

    def qemu(self, files, words, vhost):
        return qemu_microvm(files["kernel"], MEMORY_MIB, acpi=True, pcie=True, rtc=True) + [
            "-smp", "1", "-initrd", files["initrd"], "-append", f"console=ttyS0 panic=-1 {words}",
            "-netdev", f"tap,id=net,ifname={self.tap},script=no,downscript=no,vhost={vhost}",
            "-device", "virtio-net-pci,disable-legacy=on,romfile=,netdev=net"]

    def wait(self):
        """Until it answers. A tap that nobody reads and a guest without its address refuse or say nothing."""
        deadline = time.monotonic() + BOOT_LIMIT_S
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                return self.ask("hello")
            time.sleep(0.2)
        with open(self.output, "r", encoding="utf-8", errors="replace") as file:
            tail = (file.read().strip() or "nothing").splitlines()[-1]
        raise Unavailable(f"the guest of {self.who}, {self.mode}, is not there after {BOOT_LIMIT_S} s or ended; its "
                          f"last line: {tail}")

    def ask(self, line, limit=30):
        with socket.create_connection((self.address, PORT), timeout=limit) as peer:
            peer.sendall(line.encode() + b"\n")
            with peer.makefile() as answers:
                answer = answers.readline().strip()
        if not answer:
            raise OSError("no answer")
        return answer

    def pid(self):
        """Of the VMM itself: the last of a row of children, for Corral."""
        pid = self.process.pid
        while self.who == OURS:
            with open(f"/proc/{pid}/task/{pid}/children", encoding="utf-8") as file:
                children = file.read().split()
            if not children:
                break
            pid = int(children[0])
        return str(pid)

    def frames(self):
        with open("/proc/net/dev", encoding="utf-8") as file:
            fields = next(line for line in file if line.strip().startswith(self.tap + ":")).split(":")[1].split()
        return int(fields[1]) + int(fields[9])

    def end(self):
        with contextlib.suppress(OSError):
            self.ask("end", 5)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            self.process.wait()


# What is measured

def iperf3(guest, *words):
    return [need("iperf3", "iperf3"), "-c", guest.address, "-t", str(SECONDS), "-J", *words]


def throughput(guest, *words):
    found = json.loads(run(iperf3(guest, *words)))
    return found["end"]["sum_received"]["bits_per_second"] / 1e6


@contextlib.contextmanager
def plain(guest):
    """Without the guest's offloads."""
    if guest.ask("plain eth0 on") != "done":
        raise Unavailable(f"the guest of {guest.who} does not turn off its offloads")
    try:
        yield
    finally:
        guest.ask("plain eth0 off")


def frames_in(guest):
    with plain(guest):
        guest.ask("count")
        run([helper("net-probe"), "blast", guest.address, str(PORT + 1), str(BLAST_MS)])
        return float(guest.ask("count"))


def frames_out(guest):
    with plain(guest), subprocess.Popen([helper("net-probe"), "count", str(PORT + 1), str(2 * BLAST_MS)],
                                        stdout=subprocess.PIPE, text=True) as counter:
        guest.ask(f"blast {guest.host} {PORT + 1} {BLAST_MS}")
        return float(counter.stdout.read())


def round_trip(guest):
    with plain(guest):
        return int(run([helper("net-probe"), "ping", guest.address, str(PORT), str(PINGS)])) / 1e3


MEASURES = {IN: throughput, OUT: lambda guest: throughput(guest, "-R"), PPS_IN: frames_in, PPS_OUT: frames_out,
            ROUND_TRIP: round_trip}


def calls(guest, directory, words):
    """By name, of the VMM and all its threads, while iperf3 runs; and the tap's frames, both ways."""
    events = {f"{SYSTEM_CALL}/id=={number}": name for number, name in CALL_NUMBERS.items()}
    path = os.path.join(directory, "events")
    before = guest.frames()
    run([helper("event-count"), "--of", guest.pid(), path, SYSTEM_CALL, *events, "--", *iperf3(guest, *words)])
    frames = guest.frames() - before
    with open(path, encoding="utf-8") as file:
        counts = {name: int(count) for name, count in (line.rsplit(" ", 1) for line in file)}
    found = {"frames": frames, "total": counts[SYSTEM_CALL]}
    found["by name"] = {name: counts[event] for event, name in events.items() if counts[event]}
    return found


def key(who, mode):
    return f"{who}, {mode}"


def turns(guests, runs, directory, result, save):
    if not result["calls"]:
        say(f"{NAME}: counting system calls")
        found = {}
        for guest in guests:
            if guest.mode == TAP:
                found[guest.who] = {IN: calls(guest, directory, []), OUT: calls(guest, directory, ["-R"])}
        result["calls"] = found
        save()
    while len(result["rounds"]) < runs:
        say(f"{NAME}: run {len(result['rounds']) + 1} of {runs}")
        order = guests if len(result["rounds"]) % 2 == 0 else guests[::-1]
        result["rounds"].append({what: {key(guest.who, guest.mode): of(guest) for guest in order}
                                 for what, of in MEASURES.items()})
        save()


def machines(files, runs, directory, result, save):
    """What is missing in `result` is added and saved: an emulated host may lock up, and the next one goes on."""
    need_kvm()
    result["starts"] += 1
    save()
    guests = []
    try:
        for number in range(len(MACHINES)):
            say(f"{NAME}: starting {key(*MACHINES[number])}")
            guests.append(Guest(number, files, directory))
            guests[-1].wait()
        turns(guests, runs, directory, result, save)
    finally:
        for guest in guests:
            guest.end()


def in_namespace(files, runs, directory):
    order, found = os.path.join(directory, "order.json"), os.path.join(directory, "found.json")
    store(order, {"files": files, "runs": runs})
    store(found, {"starts": 0, "rounds": [], "calls": {}, "why": ""})
    command = [need("unshare", "util-linux"), "--net", "--", sys.executable, "-B", os.path.realpath(__file__), order,
               found]
    if not kvm_is_hardware():
        command = [os.path.join(core.TREE, "tools/lab"), "--timeout", str(400 + runs * 120), "--retries",
                   str(LAB_RETRIES), "--share", directory, "--", *command]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL,
                          env={**os.environ, "CORRAL_BUILD": core.BUILD}) as process:
        try:
            status = process.wait()
        finally:
            process.terminate()  # it ends its emulated host; nothing if it has ended
    result = load(found)
    if not result["rounds"]:
        raise Unavailable(result["why"] or f"it ended with status {status} before anything was measured")
    if status != 0:
        result["lab"] = f"it ended with status {status}: {len(result['rounds'])} of {runs} runs were done"
    return result


def fill(group, result):
    for what, unit in UNITS.items():
        for mode in (VHOST, TAP):
            for who in (QEMU, OURS):
                for found in result["rounds"]:
                    group.add(f"{what}, {mode}", unit, who, found[what][key(who, mode)])
    for mode, limit in ((VHOST, 0.95), (TAP, 1.2)):
        for what in (IN, OUT):
            line = f"{what}, {mode}"
            ratios = [found[what][key(OURS, mode)] / found[what][key(QEMU, mode)] for found in result["rounds"]]
            group.bar(f"{line}, of QEMU microvm's", ">=", limit, statistics.median(ratios),
                      line=(line, limit * group.median(line, QEMU)))
    fill_calls(group, result["calls"])


def fill_calls(group, found):
    for what in (IN, OUT) if len(found) == 2 else ():
        line = f"{CALLS}, {what}, {TAP}"
        for who in (QEMU, OURS):
            counted = found[who][what]
            group.add(line, "", who, counted["total"] / counted["frames"])
            group.method.append(
                f"{what}, {who} {TAP}: {counted['frames']} frames, {counted['total']} system calls: " +
                ", ".join(f"{n} {name}" for name, n in sorted(counted["by name"].items(), key=lambda x: -x[1])) + ".")
        group.bar(f"{line}, of QEMU microvm's", "<", 1.0, group.median(line, OURS) / group.median(line, QEMU),
                  line=(line, group.median(line, QEMU)))


def measure(runs, _directory):
    group = Group(NAME, "Network: a Linux guest on a tap, with vhost-net and without")
    group.method = [
        f"Debian's cloud kernel, one initrd, the same files, one CPU, {MEMORY_MIB} MiB, a tap each; all four guests "
        "up, asked in turns, every other run in the opposite order; a bar is for the median of the runs' ratios. "
        f"iperf3 is Debian's, {SECONDS} s each way; frames of 64 bytes are UDP, with the guest's offloads off, counted "
        "where they arrive.",
        "On this host's KVM." if kvm_is_hardware() else "In the emulated host of tools/lab, on its KVM (AMD SVM in "
        "software), with one CPU for host and guest: figures mean nothing by themselves, ratios do.",
        "System calls are raw_syscalls:sys_enter of the VMM, vCPU included, counted in an iperf3 of their own; frames "
        "are the tap's, both ways.",
    ]
    if os.geteuid() != 0:
        raise Unavailable("taps and a network namespace are for root: run it as root")
    maker = os.path.join(core.TREE, "tools/guest-image")
    with tempfile.TemporaryDirectory(prefix="corral-bench-") as directory:
        files = {"kernel": run([maker, "kernel"]).strip(), "initrd": os.path.join(directory, "initrd")}
        initrd_with(run([maker, "initrd"]).strip(), [need("iperf3", "iperf3"), helper("net-probe")], files["initrd"])
        result = in_namespace(files, runs, directory)
    fill(group, result)
    if "lab" in result:
        group.lacks(result["lab"])
    if result["starts"] > 1:
        group.method.append(f"The emulated host locked up and was started {result['starts']} times; each run is "
                            "whole, in one start.")
    return group


def main(order_path, found_path):
    order, result = load(order_path), load(found_path)
    try:
        run(["ip", "link", "set", "lo", "up"])
        with tempfile.TemporaryDirectory() as directory:  # in memory, in the emulated host
            order["files"]["initrd"] = shutil.copy(order["files"]["initrd"], directory)
            machines(order["files"], order["runs"], directory, result, lambda: store(found_path, result))
    except (Unavailable, OSError) as why:
        say(f"{NAME}: {why}")
        result["why"] = str(why)
        store(found_path, result)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

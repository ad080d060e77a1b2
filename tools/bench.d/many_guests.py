# SPDX-License-Identifier: Apache-2.0
"""Many VMs on one host: from the first exec until the last of them has answered, and the memory each
costs besides its guest's. The guest is idle.elf, which sleeps until someone types "ping"."""

import array
import glob
import os
import shutil
import socket
import subprocess
import tempfile
import time

from core import Group, Unavailable, corral, guest, need_kvm, qemu_microvm
from footprint import memory_kib

NAME = "many-guests"
ABOUT = "100 and 1,000 idle guests: until all have answered, memory of each VMM"
RUNS = 3

GUEST_MIB = 64
FEW, MANY = 100, 1000
STARTING = 4  # launchers under way at any time: two a processor
OURS, QEMU = "corral", "QEMU microvm"
ANSWERED, PRIVATE = "until {} guests have answered", "private memory of each of {}"


def ask(path, request, fd=None):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.connect(path)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd is not None else []
        control.sendmsg([request + b"\n"], rights)
        if not control.recv(65536):
            raise Unavailable(f"the VM behind {path} ended without an answer")


def wait_pong(peer):
    text = b""
    while b"pong" not in text:
        got = peer.recv(4096)
        if not got:
            raise Unavailable("a guest ended before it had answered")
        text += got


class Ours:
    """Detached VMs, reached as any client reaches them: by their control sockets."""

    def __init__(self, n):
        self.n, self.directory, self.peers = n, tempfile.mkdtemp(), []
        self.environment = dict(os.environ, CORRAL_RUN_DIRECTORY=self.directory)

    def start(self):
        starting = []
        for i in range(self.n):
            command = [corral(), "run", "--detach", "--name", f"guest{i}", "--kernel", guest("idle"),
                       "--memory", f"{GUEST_MIB}M"]
            starting.append(subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL))
            if len(starting) == STARTING:
                self.started(starting.pop(0))
        for launcher in starting:
            self.started(launcher)

    @staticmethod
    def started(launcher):
        if launcher.wait() != 0:
            raise Unavailable(f"a VM could not be started: corral run ended with {launcher.returncode}")

    def answer(self):
        for i in range(self.n):
            ours, theirs = socket.socketpair()
            self.peers.append(ours)
            with theirs:
                ask(f"{self.directory}/guest{i}/control.sock", b'{"id": 1, "method": "console"}',
                    theirs.fileno())
            ours.sendall(b"ping\n")
        for peer in self.peers:
            wait_pong(peer)

    def pids(self):
        for path in glob.glob(f"{self.directory}/*/pid"):
            with open(path, encoding="ascii") as file:
                yield int(file.read())

    def end(self):
        for peer in self.peers:
            peer.close()
        for path in glob.glob(f"{self.directory}/*/control.sock"):
            try:
                ask(path, b'{"id": 1, "method": "quit"}')
            except OSError:
                pass  # it has ended by itself
        for path in glob.glob(f"{self.directory}/*/"):
            subprocess.run([corral(), "wait", os.path.basename(path[:-1])], env=self.environment,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(self.directory)


class Theirs:
    """QEMU has its console on a socket pair."""

    def __init__(self, n):
        self.n, self.processes, self.peers = n, [], []

    def start(self):
        for _ in range(self.n):
            ours, theirs = socket.socketpair()
            with theirs:
                self.processes.append(subprocess.Popen(
                    qemu_microvm(guest("idle"), GUEST_MIB), stdin=theirs, stdout=theirs,
                    stderr=subprocess.DEVNULL))
            self.peers.append(ours)

    def answer(self):
        # Typed before it listens, a key is lost.
        for peer in self.peers:
            text = b""
            while b"ready" not in text:
                got = peer.recv(4096)
                if not got:
                    raise Unavailable("a guest of QEMU ended before it was ready")
                text += got
            peer.sendall(b"ping\n")
        for peer in self.peers:
            wait_pong(peer)

    def pids(self):
        return [process.pid for process in self.processes]

    def end(self):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
        for peer in self.peers:
            peer.close()


def once(group, who, crowd):
    begun = time.monotonic()
    try:
        crowd.start()
        crowd.answer()
        group.add(ANSWERED.format(crowd.n), "ms", who, (time.monotonic() - begun) * 1e3)
        for pid in list(crowd.pids())[:FEW]:
            sums = memory_kib(pid, GUEST_MIB * 1024)
            group.add(PRIVATE.format(crowd.n), "KiB", who, sums["Private_Clean"] + sums["Private_Dirty"])
    finally:
        crowd.end()


def measure(runs, _directory):
    need_kvm()
    group = Group(NAME, "Many guests: from the first exec until the last has answered")
    group.method = [
        f"The guest is idle.elf with {GUEST_MIB} MiB; each is asked \"ping\" on its console and answers \"pong\".",
        f"Ours are started by `corral run --detach`, {STARTING} at a time, and asked through their control sockets;",
        f"QEMU's are started at once. Memory: of the first {FEW} of a crowd, as in the footprint benchmark.",
    ]
    for i in range(runs):
        group.progress(i, runs)
        once(group, QEMU, Theirs(FEW))
        once(group, OURS, Ours(FEW))
    once(group, OURS, Ours(MANY))
    answered, private = ANSWERED.format(FEW), PRIVATE.format(FEW)
    group.bar(f"{FEW} idle guests have all answered", "<", 2000, group.median(answered, OURS), "ms",
              line=(answered, 2000))
    group.bar(f"private memory of each of {FEW} besides its guest's", "<=", 3072, group.median(private, OURS),
              "KiB", line=(private, 3072))
    group.bar(f"private memory of each of {MANY} besides its guest's", "<=", 3072,
              group.median(PRIVATE.format(MANY), OURS), "KiB")
    return group

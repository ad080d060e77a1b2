# SPDX-License-Identifier: Apache-2.0
"""
A Linux guest as a test sees it. In: how to start it. Out: its console's text, the answers of a
shell in it, its control socket, and how it ended. Corral starts a guest under `corral run`, Qemu
the same one under QEMU. Nothing here sleeps: whoever waits, waits for text, for an answer or for
an end.
"""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time

# Guests run on an emulated CPU, beside other work: what takes 10 s may take 60.
LIMIT = 120

# Reads commands from the console and says how each ended. No line editor, no echo. Where there is
# another shell than busybox it is taken, for busybox prefers commands of its own.
AGENT = r"""
loop='
stty -echo
echo "@ready"
while read -r line; do
	eval "$line"
	s=$?
	echo
	echo "@status $s"
done'
[ ! -x /usr/bin/dash ] || exec /usr/bin/dash -c "$loop"
eval "$loop"
"""


class Failure(Exception):
    """What a test found wrong, in a sentence."""


def agent_words():
    return "corral.run=" + base64.b64encode(AGENT.encode()).decode()


class Console:
    """A process whose standard output is a guest's console, and its input the guest's keys."""

    def __init__(self, command, env=None, user=None):
        self.text = ""
        self.at = 0  # where the next expect() looks from
        self.ended = False
        self.change = threading.Condition()
        ids = {"user": user, "group": user, "extra_groups": []} if user else {}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, env=env, **ids)
        self.errors = b""
        self.readers = [threading.Thread(target=self._read, daemon=True),
                        threading.Thread(target=self._read_errors, daemon=True)]
        for reader in self.readers:
            reader.start()

    def _read(self):
        while data := os.read(self.process.stdout.fileno(), 65536):
            with self.change:
                self.text += data.decode(errors="replace").replace("\r", "")
                self.change.notify_all()
        with self.change:
            self.ended = True
            self.change.notify_all()

    def _read_errors(self):
        while data := os.read(self.process.stderr.fileno(), 65536):
            self.errors += data

    def tail(self, lines=12):
        return "\n".join(self.text.splitlines()[-lines:] + self.stderr().splitlines()[-3:])

    def stderr(self):
        return self.errors.decode(errors="replace")

    def expect(self, pattern, limit=LIMIT):
        """Waits until the console has printed something that matches; what follows it is next."""
        end = time.monotonic() + limit
        with self.change:
            while not (match := re.compile(pattern, re.M).search(self.text, self.at)):
                left = end - time.monotonic()
                if self.ended or left <= 0:
                    why = "its console ended" if self.ended else f"{limit} s went by"
                    raise Failure(f"{why} before the guest printed \"{pattern}\":\n{self.tail()}")
                self.change.wait(left)
            self.at = match.end()
            return match

    def silent_for(self, seconds):
        """Whether nothing is printed for so long; with what is there already looked past."""
        with self.change:
            self.at = before = len(self.text)
            self.change.wait_for(lambda: len(self.text) > before, seconds)
            return len(self.text) == before

    def send(self, text):
        try:
            self.process.stdin.write(text.encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Failure(f"the guest's console is closed:\n{self.tail()}") from None

    def run(self, command, limit=LIMIT, status=0):
        """Has the guest's shell run a command; returns what it printed."""
        start = self.at
        self.send(command + "\n")
        match = self.expect(r"^@status (\d+)$", limit)
        text = self.text[start:match.start()].strip()
        if status is not None and int(match[1]) != status:
            raise Failure(f"\"{command}\" ended with {match[1]} in the guest: {text}")
        return text

    def ready(self):
        self.expect(r"^@ready$")

    def wait(self, limit=LIMIT):
        try:
            status = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            raise Failure(f"it has not ended within {limit} s:\n{self.tail()}") from None
        for reader in self.readers:
            reader.join(10)
        return status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Qemu(Console):
    """The same guest under QEMU, on the same KVM: what Corral is compared with."""

    MACHINES = {
        "q35": ["-M", "q35"],
        "microvm": ["-M", "microvm,acpi=on,pcie=on,pit=off,pic=off,rtc=on"],
    }

    def __init__(self, machine, files, disk, append):
        super().__init__([
            "qemu-system-x86_64", *self.MACHINES[machine], "-accel", "kvm", "-cpu", "host",
            "-smp", "2", "-m", "256", "-nodefaults", "-no-user-config", "-display", "none",
            "-no-reboot", "-serial", "stdio", "-kernel", files.kernel, "-initrd", files.initrd,
            "-drive", f"if=none,id=disk,format=raw,file={disk}",
            "-device", "virtio-blk-pci,drive=disk", "-device", "virtio-rng-pci",
            "-device", "virtio-serial-pci",
            "-append", f"console=ttyS0 panic=-1 {append} {agent_words()}"])


class Corral(Console):
    """A guest under `corral run`, in the foreground: killed with us, and so is its guest."""

    count = 0

    def __init__(self, files, append="", flags=(), user=None, kernel=None):
        Corral.count += 1
        self.name = f"linux-{os.getpid()}-{Corral.count}"
        self.files = files
        self.user = user
        self.env = files.environment(user)
        self.record_fd = -1
        super().__init__([
            files.corral, "run", "--name", self.name, "--kernel", kernel or files.kernel,
            "--initrd", files.initrd, *flags,
            "--append", f"quiet {append} {agent_words()}"], self.env, user)

    def path(self, name):
        return os.path.join(self.files.run_directory(self.user), self.name, name)

    def ready(self):
        super().ready()
        if self.record_fd < 0:
            # Its directory goes when it ends; what is open stays readable.
            self.record_fd = os.open(self.path("exit.json"), os.O_RDONLY)

    def verb(self, verb, *words, limit=LIMIT):
        """`corral VERB NAME`, which must succeed."""
        done = subprocess.run([self.files.corral, verb, self.name, *words], env=self.env,
                              capture_output=True, text=True, timeout=limit, check=False)
        if done.returncode:
            raise Failure(f"corral {verb} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def control(self):
        return Control(self.path("control.sock"))

    def signal(self, number):
        self.process.send_signal(number)

    def end(self, reason, status, limit=LIMIT):
        """Waits for the end, which must be this one; returns the record."""
        got = self.wait(limit)
        record = json.loads(os.pread(self.record_fd, 65536, 0) or b"{}")
        if got != status or record.get("reason") != reason:
            raise Failure(f"it ended with status {got}, not {status} ({reason}); its record says "
                          f"{record}:\n{self.tail()}")
        return record

    def __exit__(self, *_):
        if self.record_fd >= 0:
            os.close(self.record_fd)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


class Control:
    """A connection to a control socket."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(LIMIT)
        self.socket.connect(path)
        self.lines = self.socket.makefile("r", encoding="utf-8")
        self.id = 0
        self.events = []

    def event(self):
        """The next event, of a connection that called "events"."""
        if self.events:
            return self.events.pop(0)
        return json.loads(self.lines.readline() or "{}")

    def call(self, method, params=None):
        self.id += 1
        request = {"id": self.id, "method": method}
        if params is not None:
            request["params"] = params
        self.socket.sendall((json.dumps(request) + "\n").encode())
        while "event" in (answer := json.loads(self.lines.readline() or "{}")):
            self.events.append(answer)
        if answer.get("id") != self.id or "error" in answer:
            raise Failure(f"the control socket answers {request} with {answer}")
        return answer.get("result", {})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lines.close()
        self.socket.close()

#!/usr/bin/env python3
"""How long it takes from the start of Perennial until it follows, and how long /metrics takes. Prints, judges nothing.

    timings.py PERENNIAL REDIS_SERVER

Redis has the settings of docker/ and manifests/: by its own repl-diskless-sync-delay it lets the first replica wait for 5 s.
Starts are measured from before the process is made until /readyz says yes: of an empty archive, of one that is followed on,
and of a Redis that comes up empty with KEYS keys to be seeded. Pages are read one after the other, each over a connection of
its own, while nothing happens and while clients write as fast as they can.
"""

import contextlib
import http.client
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from writer import Connection

STARTS = 10
PAGES = 500
KEYS = 10_000
SECONDS_MAX = 60


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def until(what, condition, seconds=SECONDS_MAX):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"timings: waited {seconds} s in vain until {what}")
        time.sleep(0.001)


def get(port, path):
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, body
    except OSError:
        return None, ""


@contextlib.contextmanager
def running(arguments, log):
    with open(log, "ab") as out:
        process = subprocess.Popen(arguments, stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Scene:
    def __init__(self, perennial, redis, folder):
        self.perennial, self.redis, self.folder = perennial, redis, pathlib.Path(folder)
        self.port, self.pages = free_port(), free_port()

    def server(self):
        return running([self.redis, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
                        "--repl-diskless-sync-delay", "0", "--dir", str(self.folder)], self.folder / "redis.log")

    def follower(self, archive):
        return running([self.perennial, "run", "--redis", f"redis://127.0.0.1:{self.port}", "--archive",
                        f"file://{self.folder}/{archive}", "--http", f"127.0.0.1:{self.pages}"], self.folder / "perennial.log")

    def answers(self):
        try:
            Connection("127.0.0.1", self.port).close()
            return True
        except OSError:
            return False

    def say(self, *commands):
        connection = Connection("127.0.0.1", self.port)
        connection.send(*commands)
        replies = [connection.reply() for _ in commands]
        connection.close()
        return replies

    def is_ready(self):
        return get(self.pages, "/readyz")[0] == 200

    def is_stored(self):
        return int(self.say(("INCR", "probe"), ("WAIT", 1, 5000))[1]) >= 1

    def start(self, archive):
        """Milliseconds until it is ready; it lives on until the caller's `with` ends."""
        began = time.monotonic()
        follower = self.follower(archive)
        follower.__enter__()
        until("perennial is ready", self.is_ready)
        return follower, (time.monotonic() - began) * 1000


def said(name, values, unit="ms"):
    values = sorted(values)
    print(f"{name}: median {statistics.median(values):.1f} {unit}, 99 in 100 below {values[len(values) * 99 // 100]:.1f} {unit}, "
          f"longest {values[-1]:.1f} {unit} of {len(values)}")


def starts(scene):
    with scene.server():
        until("redis answers", scene.answers)
        times = []
        for number in range(STARTS):
            follower, took = scene.start(f"new{number}")
            times.append(took)
            follower.__exit__(None, None, None)
        said("start to following, an empty archive", times)
        for at in range(0, KEYS, 1000):
            scene.say(*(("SET", f"key:{number}", "x" * 100) for number in range(at, at + 1000)))
        follower, _ = scene.start("kept")
        until("something is stored", scene.is_stored)
        follower.__exit__(None, None, None)
        times = []
        for _ in range(STARTS):
            follower, took = scene.start("kept")
            times.append(took)
            until("something is stored", scene.is_stored)
            follower.__exit__(None, None, None)
        said("start to following, an archive that is followed on", times)
    times = []
    for _ in range(STARTS):
        with scene.server():
            until("redis answers", scene.answers)
            follower, took = scene.start("kept")
            times.append(took)
            until("something is stored", scene.is_stored)
            follower.__exit__(None, None, None)
    said(f"start to following, an empty Redis seeded with {KEYS} keys", times)


def read_pages(scene, name):
    times = []
    for _ in range(PAGES):
        began = time.monotonic()
        status, text = get(scene.pages, "/metrics")
        times.append((time.monotonic() - began) * 1000)
        if status != 200:
            sys.exit(f"timings: /metrics answered {status}")
    resident = re.search(r"\nprocess_resident_memory_bytes (\S+)", text)
    said(f"/metrics, {name}", times)
    return float(resident.group(1)) / (1 << 20)


def pages(scene):
    with scene.server():
        until("redis answers", scene.answers)
        follower, _ = scene.start("pages")
        until("something is stored", scene.is_stored)
        read_pages(scene, "idle")
        stop, count = threading.Event(), [0]

        def write():
            connection = Connection("127.0.0.1", scene.port)
            while not stop.is_set():
                connection.send(*(("SET", f"key:{n}", "x" * 500) for n in range(50)))
                for _ in range(50):
                    connection.reply()
                count[0] += 50

        writers = [threading.Thread(target=write) for _ in range(2)]
        for writer in writers:
            writer.start()
        began = time.monotonic()
        resident = read_pages(scene, "under load")
        rate = count[0] / (time.monotonic() - began)
        stop.set()
        for writer in writers:
            writer.join()
        print(f"(the load: {rate:.0f} writes a second of 500 bytes; {resident:.0f} MiB resident)")
        follower.__exit__(None, None, None)


def main():
    perennial, redis = sys.argv[1:3]
    with tempfile.TemporaryDirectory(prefix="perennial-timings.") as folder:
        scene = Scene(perennial, redis, folder)
        starts(scene)
        pages(scene)


if __name__ == "__main__":
    main()

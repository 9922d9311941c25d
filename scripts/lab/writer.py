#!/usr/bin/env python3
"""Writes without a pause, through every kill, and says at the end what became of each write.

Each writer sends SET, GET of a sentinel, and WAIT on one connection, reconnects within milliseconds, and never uses a key
twice. A write counts as waited for when as many acknowledged it as --acks says: one more than there are real replicas, so
that Perennial is among them. A write that is taken while the sentinel is missing was taken by a server before its seed.

Ends on SIGTERM or SIGINT, reads every key back, prints one line of JSON; exit 1 where a waited write is missing or changed,
where a write was taken before a seed, or where nothing was waited for.
"""

import argparse
import json
import signal
import socket
import sys
import threading
import time

SENTINEL = "writer:sentinel"
RECONNECT_SECONDS = 0.005
REPLY_SECONDS_MAX = 10.0
READ_BACK_SECONDS_MAX = 120.0

stop = threading.Event()


class Refused(Exception):
    """An error reply."""


class Connection:
    def __init__(self, host, port):
        self.socket = socket.create_connection((host, port), timeout=REPLY_SECONDS_MAX)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    def close(self):
        self.file.close()
        self.socket.close()

    def send(self, *commands):
        out = b""
        for words in commands:
            words = [str(word).encode() for word in words]
            out += b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
        self.socket.sendall(out)

    def reply(self):
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise OSError("closed")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise Refused(rest.decode(errors="replace"))
        if kind == b"$":
            if rest == b"-1":
                return None
            body = self.file.read(int(rest) + 2)
            if len(body) != int(rest) + 2:
                raise OSError("closed")
            return body[:-2].decode()
        return rest.decode()


class Writer(threading.Thread):
    def __init__(self, number, options, run):
        super().__init__(daemon=True)
        self.number, self.options, self.run_name = number, options, run
        self.accepted, self.refused, self.broken, self.before_seed = 0, {}, 0, 0
        self.waited = []
        self.last_good, self.outage_longest = None, 0.0

    def run(self):
        connection, count = None, 0
        while not stop.is_set():
            count += 1
            key, value = f"writer:{self.run_name}:{self.number}:{count}", f"{count}-{'x' * self.options.size}"
            try:
                if connection is None:
                    connection = Connection(self.options.host, self.options.port)
                self.once(connection, key, value)
            except Refused as error:
                word = str(error).split(" ", 1)[0]
                self.refused[word] = self.refused.get(word, 0) + 1
                connection.close()
                connection = None
                time.sleep(RECONNECT_SECONDS)
            except (OSError, ValueError):
                self.broken += 1
                if connection is not None:
                    connection.close()
                connection = None
                time.sleep(RECONNECT_SECONDS)
            if self.options.pause:
                time.sleep(self.options.pause / 1000)

    def once(self, connection, key, value):
        connection.send(("SET", key, value), ("GET", SENTINEL), ("WAIT", self.options.acks, self.options.wait_millis))
        connection.reply()
        self.accepted += 1
        if connection.reply() != self.run_name:
            self.before_seed += 1
        if int(connection.reply()) >= self.options.acks:
            self.waited.append((key, value))
            now = time.monotonic()
            if self.last_good is not None:
                self.outage_longest = max(self.outage_longest, now - self.last_good)
            self.last_good = now


def patiently(options, action):
    """Until it succeeds, or patience ends."""
    end = time.monotonic() + READ_BACK_SECONDS_MAX
    while True:
        try:
            connection = Connection(options.host, options.port)
            try:
                return action(connection)
            finally:
                connection.close()
        except (Refused, OSError) as error:
            if time.monotonic() > end:
                sys.exit(f"writer: {options.host}:{options.port}: {error}")
            time.sleep(0.1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--acks", type=int, default=1)
    parser.add_argument("--wait-millis", type=int, default=5000)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--size", type=int, default=100, help="bytes of a value")
    parser.add_argument("--status", help="a file that tells how many writes were waited for so far")
    parser.add_argument("--pause", type=float, default=0, help="milliseconds between two writes")
    parser.add_argument("--once", action="store_true", help="only one write, until it is waited for")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())

    run = f"{time.time_ns():x}"

    def begin(connection):
        connection.send(("SET", SENTINEL, run), ("WAIT", options.acks, options.wait_millis))
        connection.reply()
        if int(connection.reply()) < options.acks:
            raise Refused("the sentinel was not acknowledged")

    patiently(options, begin)
    if options.once:
        return
    print("writing", flush=True)
    writers = [Writer(number, options, run) for number in range(options.writers)]
    for writer in writers:
        writer.start()
    while not stop.wait(0.1):
        if options.status:
            with open(options.status, "w") as status:
                status.write(f"{sum(len(writer.waited) for writer in writers)}\n")
    for writer in writers:
        writer.join()

    waited = [pair for writer in writers for pair in writer.waited]

    def read_back(connection):
        lost = []
        for at in range(0, len(waited), 500):
            part = waited[at:at + 500]
            connection.send(*[("GET", key) for key, _ in part])
            for key, value in part:
                if connection.reply() != value:
                    lost.append(key)
        return lost

    missing = patiently(options, read_back)
    refused = {}
    for writer in writers:
        for word, count in writer.refused.items():
            refused[word] = refused.get(word, 0) + count
    before_seed = sum(writer.before_seed for writer in writers)
    print(json.dumps({
        "accepted": sum(writer.accepted for writer in writers),
        "waited": len(waited),
        "waited_missing": len(missing),
        "taken_before_seed": before_seed,
        "connections_broken": sum(writer.broken for writer in writers),
        "refused": refused,
        "longest_pause_seconds": round(max(writer.outage_longest for writer in writers), 2),
    }), flush=True)
    if missing:
        print("missing:", *missing[:10], file=sys.stderr)
    sys.exit(1 if missing or before_seed or not waited else 0)


if __name__ == "__main__":
    main()

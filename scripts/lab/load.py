#!/usr/bin/env python3
"""Writes values of every kind over and over, at so many bytes a second, through every kill: something to follow.

Ends on SIGTERM or SIGINT. What was taken is not counted: scripts/lab/writer.py does that.
"""

import argparse
import os
import random
import signal
import sys
import threading

from writer import RECONNECT_SECONDS, Connection, Refused

KEYS = 400
ROUNDS_PER_SECOND = 10

stop = threading.Event()


def commands(size):
    """One write of each kind, of about `size` random bytes each."""
    number = random.randrange(KEYS)
    value = os.urandom(size // 2).hex()
    half = value[: size // 2]
    yield "SET", f"load:string:{number}", value
    yield "HSET", f"load:hash:{number}", f"field{random.randrange(50)}", half, "last", half
    yield "RPUSH", f"load:list:{number}", half, half
    yield "LTRIM", f"load:list:{number}", -20, -1
    yield "SADD", f"load:set:{number}", half
    if random.random() < 0.9:
        yield "SPOP", f"load:set:{number}"
    yield "ZADD", f"load:zset:{number}", random.randrange(1000), f"member{random.randrange(50)}"
    yield "XADD", f"load:stream:{number}", "MAXLEN", 20, "*", "field", half
    yield "INCR", "load:counter"
    yield "SET", f"load:passing:{number}", half, "PX", random.randrange(1000, 60000)
    yield "DEL", f"load:string:{random.randrange(KEYS)}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--bytes-per-second", type=int, default=300_000)
    parser.add_argument("--size", type=int, default=2000, help="bytes of a value, about")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    sets = max(1, options.bytes_per_second // ROUNDS_PER_SECOND // (options.size * 5))
    connection = None
    while not stop.wait(1 / ROUNDS_PER_SECOND):
        batch = [command for _ in range(sets) for command in commands(options.size)]
        try:
            connection = connection or Connection(options.host, options.port)
            connection.send(*batch)
            for _ in batch:
                connection.reply()
        except (Refused, OSError, ValueError):
            if connection is not None:
                connection.close()
            connection = None
            stop.wait(RECONNECT_SECONDS)
    sys.exit(0)


if __name__ == "__main__":
    main()

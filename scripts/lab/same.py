#!/usr/bin/env python3
"""Whether two servers hold the same: every key, its type, its value and whether it expires. Prints one line of JSON.

    same.py HOST:PORT HOST:PORT

Keys that have expired by the end of it are no difference. Exit 1 where something else differs.
"""

import hashlib
import json
import sys
import time

from writer import Connection, Refused

READ = {
    b"string": lambda key: ("GET", key),
    b"list": lambda key: ("LRANGE", key, 0, -1),
    b"set": lambda key: ("SMEMBERS", key),
    b"hash": lambda key: ("HGETALL", key),
    b"zset": lambda key: ("ZRANGE", key, 0, -1, "WITHSCORES"),
    b"stream": lambda key: ("XRANGE", key, "-", "+"),
}
SHOWN = 5
# The expiry of what never does.
LASTS = -1


class Server(Connection):
    """Replies as bytes, arrays as lists."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        super().__init__(host, int(port))
        self.socket.settimeout(60)

    def reply(self):
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise OSError("closed")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise Refused(rest.decode(errors="replace"))
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        if kind == b"$":
            return None if rest == b"-1" else self.file.read(int(rest) + 2)[:-2]
        return rest

    def ask(self, *commands):
        self.send(*commands)
        return [self.reply() for _ in commands]

    def digests(self):
        """Of each key: its type, its expiry in Unix milliseconds or -1, and a digest of its value."""
        found, cursor = {}, b"0"
        while True:
            cursor, keys = self.ask(("SCAN", cursor.decode(), "COUNT", 1000))[0]
            keys = [key.decode() for key in keys]
            types = self.ask(*(("TYPE", key) for key in keys)) if keys else []
            known = [(key, kind) for key, kind in zip(keys, types) if kind in READ]
            asked = [command for key, kind in known for command in (("PEXPIRETIME", key), READ[kind](key))]
            answers = self.ask(*asked) if asked else []
            for number, (key, kind) in enumerate(known):
                expires, value = answers[2 * number], answers[2 * number + 1]
                if kind == b"set":
                    value = sorted(value)
                if kind == b"hash":
                    value = sorted(zip(value[::2], value[1::2]))
                found[key] = (kind.decode(), int(expires), hashlib.sha256(repr(value).encode()).hexdigest())
            if cursor == b"0":
                return found


def main():
    first, second = (Server(address).digests() for address in sys.argv[1:3])
    now = time.time() * 1000
    # What has expired by now may be gone on one side, or have gone while it was read.
    alive = [{key: value for key, value in side.items() if value[1] == LASTS or value[1] > now} for side in (first, second)]
    different = sorted(key for key in alive[0].keys() | alive[1].keys() if alive[0].get(key) != alive[1].get(key))
    expiring = sum(1 for value in alive[0].values() if value[1] != LASTS)
    lasting = sorted((key, value) for key, value in alive[0].items() if value[1] == LASTS)
    digest = hashlib.sha256(json.dumps(lasting).encode()).hexdigest()
    print(json.dumps({"keys": [len(side) for side in alive], "expiring": expiring, "different": len(different),
                      "first_of_them": different[:SHOWN], "digest": digest}))
    sys.exit(1 if different or not first else 0)


if __name__ == "__main__":
    main()

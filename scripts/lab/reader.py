#!/usr/bin/env python3
"""Reads the guest book's list without a pause and counts what it is shown.

Every answer must hold the entry given. Ends on SIGTERM or SIGINT and prints one line of JSON; exit 1 where the entry was
missing from a list that was shown, or where nothing was read.
"""

import argparse
import json
import signal
import sys
import threading
import urllib.error
import urllib.request

stop = threading.Event()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("entry")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    shown = without_entry = empty = refused = 0
    while not stop.wait(0.02):
        try:
            with urllib.request.urlopen(options.url, timeout=10) as answer:
                text = answer.read().decode()
        except (urllib.error.URLError, OSError):
            refused += 1
            continue
        shown += 1
        empty += not text
        without_entry += options.entry not in text
    print(json.dumps({"lists_shown": shown, "empty": empty, "without_the_entry": without_entry, "not_answered": refused}))
    sys.exit(1 if without_entry or not shown else 0)


if __name__ == "__main__":
    main()

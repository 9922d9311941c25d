#!/usr/bin/env python3
"""A guest book: a form and a list. Entries are written to the leader and read from a follower.

Nothing but Python's own library. The environment says where the servers are:

GET_HOSTS_FROM   dns (the names below are looked up) or env (the variables that Kubernetes sets for a service)
LEADER, FOLLOWER names of the services; redis-master and redis-replica
REDIS_PORT       6379
WAIT_REPLICAS    how many acknowledgements an entry waits for; 0 waits for none. Perennial counts as one, and it
                 acknowledges what is in the archive: one more than there are real replicas means "kept for good"
WAIT_MILLIS      how long; 2000
PORT             where to listen; 8080
"""

import html
import os
import socket
import sys
import time
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "guestbook"
ENTRIES_SHOWN_MAX = 200
ENTRY_CHARACTERS_MAX = 280
BODY_BYTES_MAX = 16 * 1024
REPLY_BYTES_MAX = 4 * 1024 * 1024
REDIS_SECONDS_MAX = 5.0

PORT = int(os.environ.get("PORT", "8080"))
REDIS_PORT = int(os.environ.get("REDIS_PORT", "6379"))
WAIT_REPLICAS = int(os.environ.get("WAIT_REPLICAS", "0"))
WAIT_MILLIS = int(os.environ.get("WAIT_MILLIS", "2000"))


class RedisError(Exception):
    """The server could not be reached, or answered with an error."""


def address(service):
    """Where a service is: by its name, or by the variables that Kubernetes sets."""
    if os.environ.get("GET_HOSTS_FROM", "dns") == "env":
        prefix = service.upper().replace("-", "_") + "_SERVICE_"
        host = os.environ.get(prefix + "HOST")
        if not host:
            raise RedisError(f"{prefix}HOST is not set: start this pod after the service {service}")
        return host, int(os.environ.get(prefix + "PORT", REDIS_PORT))
    return service, REDIS_PORT


def leader():
    return address(os.environ.get("LEADER", "redis-master"))


def follower():
    return address(os.environ.get("FOLLOWER", "redis-replica"))


class Redis:
    """One connection, as long as one request to the page."""

    def __init__(self, where):
        try:
            self.socket = socket.create_connection(where, timeout=REDIS_SECONDS_MAX)
        except OSError as error:
            raise RedisError(f"connect to {where[0]}:{where[1]}: {error}") from error
        self.file = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()

    def __call__(self, *words):
        words = [str(word).encode() for word in words]
        request = b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
        try:
            self.socket.sendall(request)
            return self.reply()
        except OSError as error:
            raise RedisError(f"{words[0].decode()}: {error}") from error

    def reply(self):
        line = self.file.readline(1024)
        if not line.endswith(b"\r\n"):
            raise RedisError("the server closed the connection")
        kind, rest = line[:1], line[1:-2].decode(errors="replace")
        if kind == b"-":
            raise RedisError(rest)
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if kind == b"$":
            size = int(rest)
            if size < 0:
                return None
            if size > REPLY_BYTES_MAX:
                raise RedisError(f"a reply of {size} bytes")
            body = self.file.read(size + 2)
            if len(body) != size + 2:
                raise RedisError("the server closed the connection")
            return body[:-2].decode(errors="replace")
        if kind == b"*":
            return [self.reply() for _ in range(min(int(rest), ENTRIES_SHOWN_MAX))]
        raise RedisError(f"not a reply: {line[:40]!r}")


def entries():
    """The newest entries, newest first, from a follower."""
    with Redis(follower()) as redis:
        return redis("LRANGE", KEY, 0, ENTRIES_SHOWN_MAX - 1)


def sign(text):
    """Writes one entry to the leader; tells how many acknowledged it, or None where nobody was asked."""
    with Redis(leader()) as redis:
        stamp = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
        redis("LPUSH", KEY, f"{stamp}\t{text}")
        return redis("WAIT", WAIT_REPLICAS, WAIT_MILLIS) if WAIT_REPLICAS else None


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Guest book</title>
<style>
  :root {{ color-scheme: light dark; }}
  body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 2rem auto; padding: 0 1rem; }}
  h1 {{ font-weight: 600; }}
  form {{ display: flex; gap: .5rem; margin: 1.5rem 0; }}
  input {{ flex: 1; font: inherit; padding: .5rem .75rem; border: 1px solid #8888; border-radius: .4rem; }}
  button {{ font: inherit; padding: .5rem 1rem; border: 0; border-radius: .4rem; background: #2f6f4f; color: #fff; }}
  ol {{ list-style: none; padding: 0; }}
  li {{ padding: .6rem 0; border-bottom: 1px solid #8884; }}
  time {{ color: #888; font-size: .85rem; margin-right: .75rem; }}
  .note {{ padding: .6rem .9rem; border-radius: .4rem; background: #2f6f4f22; }}
  .trouble {{ background: #b3261e22; }}
  .empty {{ color: #888; }}
</style>
</head>
<body>
<h1>Guest book</h1>
{note}
<form method="post" action="/entries">
  <input name="entry" maxlength="{max}" placeholder="Your name, and a word" aria-label="Entry" value="{draft}" required autofocus>
  <button>Sign</button>
</form>
{list}
</body>
</html>
"""


def page(note="", trouble=False, draft=""):
    """The whole page, and its status: 503 where the entries cannot be read."""
    status = 503 if trouble else 200
    try:
        found = entries()
        items = "\n".join(item(entry) for entry in found)
        listing = f"<ol id=\"entries\">\n{items}\n</ol>" if found else '<p class="empty">No one has signed yet.</p>'
    except RedisError as error:
        # An empty list would be a lie: nobody knows what the book holds.
        status, listing = 503, f'<p class="note trouble">The book cannot be opened: {html.escape(str(error))}</p>'
    if note:
        note = f'<p class="note{" trouble" if trouble else ""}">{html.escape(note)}</p>'
    text = PAGE.format(note=note, list=listing, draft=html.escape(draft), max=ENTRY_CHARACTERS_MAX)
    return status, text


def item(entry):
    stamp, _, text = entry.rpartition("\t")
    return f"  <li><time>{html.escape(stamp)}</time>{html.escape(text)}</li>"


class Handler(BaseHTTPRequestHandler):
    timeout = 10
    server_version = "guestbook"
    sys_version = ""

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        if url.path == "/healthz":
            return self.answer(200, "ok\n", "text/plain")
        if url.path == "/entries":
            try:
                return self.answer(200, "".join(line + "\n" for line in entries()), "text/plain")
            except RedisError as error:
                return self.answer(503, f"{error}\n", "text/plain")
        if url.path == "/":
            kept = urllib.parse.parse_qs(url.query).get("kept", [""])[0]
            notes = {
                "yes": "Thank you. Your entry is in the archive.",
                "sent": "Thank you.",
                "late": "Thank you. Your entry is written, but not everybody has acknowledged it yet.",
            }
            return self.answer(*page(notes.get(kept, "")))
        return self.answer(404, "/, /entries, /healthz\n", "text/plain")

    def do_POST(self):
        if urllib.parse.urlsplit(self.path).path != "/entries":
            return self.answer(404, "/entries\n", "text/plain")
        try:
            size = int(self.headers.get("Content-Length", ""))
        except ValueError:
            return self.answer(411, "Content-Length is needed\n", "text/plain")
        if not 0 <= size <= BODY_BYTES_MAX:
            return self.answer(413, f"at most {BODY_BYTES_MAX} bytes\n", "text/plain")
        fields = urllib.parse.parse_qs(self.rfile.read(size).decode(errors="replace"))
        text = " ".join(fields.get("entry", [""])[0].split())[:ENTRY_CHARACTERS_MAX]
        if not text:
            return self.redirect("/")
        try:
            acknowledged = sign(text)
        except RedisError as error:
            return self.answer(*page(f"Nobody can sign at the moment: {error}", trouble=True, draft=text))
        if acknowledged is None:
            return self.redirect("/?kept=sent")
        return self.redirect("/?kept=yes" if acknowledged >= WAIT_REPLICAS else "/?kept=late")

    def redirect(self, where):
        self.send_response(303)
        self.send_header("Location", where)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, status, text, kind="text/html"):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code="-", size="-"):
        if self.path != "/healthz":
            super().log_request(code, size)


def main():
    if sys.argv[1:] == ["--check"]:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/healthz", timeout=2) as answer:
            sys.exit(0 if answer.status == 200 else 1)
    server = ThreadingHTTPServer(("", PORT), Handler)
    print(f"guest book on port {PORT}: writes {os.environ.get('LEADER', 'redis-master')}, "
          f"reads {os.environ.get('FOLLOWER', 'redis-replica')}")
    server.serve_forever()


if __name__ == "__main__":
    main()

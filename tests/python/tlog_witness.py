"""A witness after C2SP tlog-witness and tlog-cosignature, written from their texts. Usage: PORT LOG_VKEY STATE_DIR

Prints its own verifying key, and keeps the newest checkpoint that it has signed in STATE_DIR.
"""

import base64
import hashlib
import pathlib
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

NAME = "witness.test/w1"


def key_id(name, kind, key):
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + key).digest()[:4]


def node(left, right):
    return hashlib.sha256(b"\x01" + left + right).digest()


def consistent(old, old_root, new, new_root, proof):
    """RFC 6962 section 2.1.2, by rebuilding both roots from the definition of the proof."""
    if old == 0:
        return not proof
    if old == new:
        return not proof and old_root == new_root
    proof = list(proof)

    def roots(m, n, whole):
        if m == n:
            if whole:
                return old_root, old_root
            both = proof.pop(0)
            return both, both
        k = 1
        while k * 2 < n:
            k *= 2
        if m <= k:
            before, after = roots(m, k, whole)
            return before, node(after, proof.pop(0))
        before, after = roots(m - k, n - k, False)
        left = proof.pop(0)
        return node(left, before), node(left, after)

    try:
        return roots(old, new, True) == (old_root, new_root) and not proof
    except IndexError:
        return False


class Witness(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, status, body="", kind="text/plain"):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        if self.path != "/add-checkpoint":
            return self.answer(404)
        head, note = body.split("\n\n", 1)
        lines = head.split("\n")
        old, proof = int(lines[0].removeprefix("old ")), [base64.b64decode(line) for line in lines[1:]]
        text, signatures = note.split("\n\n", 1)
        text += "\n"
        origin, size, root = text.split("\n")[:3]
        size, root = int(size), base64.b64decode(root)
        if origin != LOG_NAME:
            return self.answer(404)
        if not any(self.is_signed(text, line) for line in signatures.splitlines()):
            return self.answer(403)
        if old > size or len(proof) > 63:
            return self.answer(400)
        seen, seen_root = load()
        if old != seen or (old == size and root != seen_root):
            return self.answer(409, f"{seen}\n", "text/x.tlog.size")
        if not consistent(old, seen_root, size, root, proof):
            return self.answer(422)
        (STATE / "seen").write_text(f"{size} {root.hex()}")
        now = int(time.time())
        signature = KEY.sign(f"cosignature/v1\ntime {now}\n{text}".encode())
        line = base64.b64encode(key_id(NAME, 4, PUBLIC) + now.to_bytes(8, "big") + signature).decode()
        self.answer(200, f"\u2014 somebody.else/w AAAAAAAA\n\u2014 {NAME} {line}\n")

    def is_signed(self, text, line):
        _, name, encoded = line.split(" ")
        data = base64.b64decode(encoded)
        if name != LOG_NAME or data[:4] != key_id(LOG_NAME, 1, LOG_KEY):
            return False
        try:
            Ed25519PublicKey.from_public_bytes(LOG_KEY).verify(data[4:], text.encode())
            return True
        except InvalidSignature:
            return False


def load():
    try:
        size, root = (STATE / "seen").read_text().split()
        return int(size), bytes.fromhex(root)
    except FileNotFoundError:
        return 0, b""


STATE = pathlib.Path(sys.argv[3])
LOG_NAME, _, encoded = sys.argv[2].split("+", 2)
LOG_KEY = base64.b64decode(encoded)[1:]
kept = STATE / "key"
if not kept.exists():
    raw = (serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption())
    kept.write_bytes(Ed25519PrivateKey.generate().private_bytes(*raw))
KEY = Ed25519PrivateKey.from_private_bytes(kept.read_bytes())
PUBLIC = KEY.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
server = HTTPServer(("127.0.0.1", int(sys.argv[1])), Witness)
vkey = base64.b64encode(b"\x04" + PUBLIC).decode()
print(f"{NAME}+{key_id(NAME, 4, PUBLIC).hex()}+{vkey}", flush=True)
server.serve_forever()

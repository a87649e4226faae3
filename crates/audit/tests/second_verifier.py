"""A second verifier of Sortie's audit logs, written from docs/audit-format.md: it shares no code with the first."""
import argparse, base64, hashlib, json, os, re, stat, sys
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MAX_LINE = 256 * 1024
HEAD = re.compile(
    rb'\{"seq":(0|[1-9][0-9]{0,19}),"prev":"([0-9a-f]{64})",'
    rb'"time":"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{6}Z",'
    rb'"code":"([A-Z][0-9]{4}[IWE])","event":"([a-z0-9_]{1,64})"[,}]')


class Wrong(Exception):
    pass


def need(condition, what):
    if not condition:
        raise Wrong(what)


def leaf(line):
    return hashlib.sha256(b"\x00" + line).digest()


def node(left, right):
    return hashlib.sha256(b"\x01" + left + right).digest()


def push(peaks, size, hash):
    while size & 1:  # Two subtrees of one size become one of twice the size.
        hash, size = node(peaks.pop(), hash), size >> 1
    peaks.append(hash)


def root(peaks):
    hash = peaks[-1] if peaks else hashlib.sha256(b"").digest()
    for left in reversed(peaks[:-1]):
        hash = node(left, hash)
    return hash


def unique(pairs):
    return dict(pairs), len(pairs) == len(dict(pairs))


def record(line):
    """The exact form of a record: its number, the hash it follows, its code, and its members."""
    need(len(line) <= MAX_LINE, "a line is too long")
    head = HEAD.match(line)
    need(head and line.endswith(b"}") and min(line) >= 0x20, "not a record")
    try:
        text = line.decode("utf-8")
        # Only the outermost pairs count, and they come last; int() refuses NaN and Infinity.
        members, once = json.loads(text, object_pairs_hook=unique, parse_int=str, parse_float=str, parse_constant=int)
    except (UnicodeDecodeError, ValueError, TypeError) as error:
        raise Wrong(f"not a record: {error}")
    need(once, "a member comes twice")
    need(int(head[1]) < 2**64, "seq is too large")
    return int(head[1]), bytes.fromhex(head[2].decode()), head[3], members


def b64(text):
    found = base64.b64decode(text, validate=True)
    need(base64.b64encode(found).decode() == text, "not base64")
    return found


class Key:
    """A verifying key as C2SP signed-note writes it: NAME+HASH+KEY."""

    def __init__(self, text):
        parts = text.strip("\n").split("+", 2)
        need(len(parts) == 3, "not a key")
        self.name, raw = parts[0], b64(parts[2])
        need(len(raw) == 33 and raw[0] == 1, "not an Ed25519 key")
        self.text, self.public = text.strip("\n"), Ed25519PublicKey.from_public_bytes(raw[1:])
        self.id = hashlib.sha256(self.name.encode() + b"\n" + raw).digest()[:4]
        need(self.id.hex() == parts[1], "the key has another hash")


def checkpoint(note, keys):
    """The size and the root that one of these keys has signed."""
    need(len(note) <= 16 * 1024 and not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", note), "not a note")
    text, blank, signatures = note.rpartition("\n\n")
    need(blank and signatures.endswith("\n"), "not a note")
    text += "\n"
    lines = [line.split(" ") for line in signatures[:-1].split("\n")]
    need(all(len(parts) == 3 and parts[0] == "\u2014" and len(b64(parts[2])) > 4 for parts in lines), "not a note")
    for key in keys:
        ours = [b64(parts[2]) for parts in lines if parts[1] == key.name and b64(parts[2])[:4] == key.id]
        for signature in ours:
            try:
                key.public.verify(signature[4:], text.encode())
            except InvalidSignature:
                raise Wrong("a checkpoint is forged")
        if ours:
            origin, size, tree = (text.split("\n") + ["", ""])[:3]
            need(origin == key.name and re.fullmatch(r"0|[1-9][0-9]*", size) and len(b64(tree)) == 32, "not a checkpoint")
            return int(size), b64(tree)
    raise Wrong("a checkpoint is not signed by the key")


def read(path):
    about = os.lstat(path)
    need(stat.S_ISREG(about.st_mode), f"{path} is not a file")
    with open(path, "rb") as file:
        return file.read()


def verify(directory, keys, elsewhere):
    own = os.path.join(directory, "key.pub")
    found = [Key(read(own).decode())] if os.path.lexists(own) else []
    need(not keys or all(own.text in [key.text for key in keys] for own in found), "key.pub is another key")
    trusted = keys or found
    wanted = []
    for name in sorted(os.listdir(os.path.join(directory, "checkpoints"))):
        if re.fullmatch(r"[0-9]{20}", name):
            size, tree = checkpoint(read(os.path.join(directory, "checkpoints", name)).decode(), trusted)
            need(size == int(name), "a checkpoint was renamed")
            wanted.append((size, tree, False))
    wanted += [(*checkpoint(note, trusted), True) for note in elsewhere]
    names = sorted(os.listdir(os.path.join(directory, "log")))
    need(all(re.fullmatch(r"[0-9]{20}\.jsonl", name) for name in names), "something strange lies in the log")
    first = size = int(names[0][:20]) if names else 0
    prev, peaks, torn = (bytes(32) if first == 0 else None), [], 0
    fits = {(0, root([]))}
    for at, name in enumerate(names):
        need(int(name[:20]) == size, f"records from {size} on are missing")
        *lines, rest = read(os.path.join(directory, "log", name)).split(b"\n")
        last = at == len(names) - 1
        need(not rest or last, "a line has no end")
        need(lines or (last and prev is not None), "a file has no record")
        torn = len(rest)
        for number, line in enumerate(lines):
            seq, said, code, members = record(line)
            need(seq == size, f"record {seq} stands where {size} has to be")
            need(prev is None or said == prev, f"record {seq} follows another record")
            need(code == b"A0001I" or number > 0, "a file has no log_opened")
            if code == b"A0001I":
                frontier = [bytes.fromhex(hash) for hash in members["frontier"]]
                if prev is None:
                    need(len(frontier) == bin(first).count("1"), "a frontier has another length")
                    peaks = list(frontier)
                    fits.add((size, root(peaks)))
                need(members["format"] == "1" and frontier == peaks, "a frontier is another")
            prev = leaf(line)
            push(peaks, size, prev)
            size += 1
            fits.add((size, root(peaks)))
    compared = [signed for signed in wanted if signed[0] >= first]
    need(all((size, tree) in fits for size, tree, _ in compared), "the log is not what was signed")
    need(not elsewhere or any(far for *_, far in compared), "the checkpoints given are of older records")
    need(not keys or compared, "nothing is signed with the key")
    trust = "-and-".join(["key"] * bool(keys) + ["checkpoint"] * bool(elsewhere)) or "self-consistent"
    return {"ok": True, "trust": trust, "first": first, "size": size, "root": root(peaks).hex(), "torn": torn}


def proven(document, keys):
    need(document["format"] == "sortie-audit-proof/1", "not a proof")
    line, at = document["record"].encode(), document["index"]
    need(record(line)[0] == at, "another record")
    size, tree = checkpoint(document["checkpoint"], keys)
    need(size == document["size"] and at < size, "another size")
    hash, last = leaf(line), size - 1
    for beside in map(bytes.fromhex, document["path"]):
        need(last, "the path is too long")
        if at & 1 or at == last:
            hash = node(beside, hash)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            hash = node(hash, beside)
        at, last = at >> 1, last >> 1
    need(last == 0 and hash == tree, "another root")
    return {"ok": True, "index": document["index"], "size": size}


def main():
    words = argparse.ArgumentParser()
    words.add_argument("dir", nargs="?")
    words.add_argument("--key", action="append", default=[])
    words.add_argument("--checkpoint", action="append", default=[])
    words.add_argument("--proof")
    args = words.parse_args()
    try:
        keys = [Key(text) for text in args.key]
        notes = [read(path).decode() for path in args.checkpoint]
        found = proven(json.loads(read(args.proof)), keys) if args.proof else verify(args.dir, keys, notes)
    except (Wrong, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        found = {"ok": False, "error": str(error)}
    print(json.dumps(found))
    return 0 if found["ok"] else 1


sys.exit(main())

"""Opens the payloads of an audit log: KEY LOG. HPKE is that of the package `cryptography`, which shares no code with
Sortie's."""
import base64, json, sys
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

key, log = sys.argv[1:]
private = X25519PrivateKey.from_private_bytes(bytes.fromhex(open(key).read().split()[1]))
suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
opened = []
for record in map(json.loads, open(log)):
    payload = record.get("payload")
    if payload:
        sealed = base64.b64decode(payload["enc"]) + base64.b64decode(payload["ciphertext"])
        text = suite.decrypt(sealed, private, payload["info"].encode())
        opened.append({"seq": record["seq"], "payload": text.decode(), "cut": payload["cut"]})
print(json.dumps(opened))

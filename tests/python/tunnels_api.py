"""Drives the tunnels API with the unmodified SDK `anthropic`; exits non-zero at the first difference.

    python tunnels_api.py BASE_URL MANAGE_KEY USE_KEY CA_PEM_FILE CA2_PEM_FILE
    python tunnels_api.py LOSSY_URL MANAGE_KEY

Leaves only archived tunnels behind. Needs room for four tunnels. LOSSY_URL delivers requests, and loses the first two
answers.
"""

import base64
import hashlib
import json
import re
import ssl
import sys
from datetime import datetime, timezone

import anthropic


def check(truth, what):
    if not truth:
        sys.exit(f"tunnels_api: {what}")


def same(found, expected, what):
    check(found == expected, f"{what}: expected {expected!r}, found {found!r}")


def refused(kind, status, what, call):
    """Calls something that has to raise this SDK exception; returns it."""
    try:
        result = call()
    except kind as error:
        same(type(error), kind, what)
        same(error.status_code, status, what)
        same(error.body["type"], "error", what)
        same(error.body["request_id"], error.response.headers.get("request-id"), f"{what}: request id")
        check(error.body["error"]["message"], f"{what}: no message")
        return error
    except anthropic.AnthropicError as error:
        sys.exit(f"tunnels_api: {what}: expected {kind.__name__}, found {type(error).__name__}: {error}")
    sys.exit(f"tunnels_api: {what}: expected {kind.__name__}, found {result!r}")


def recent(moment, what):
    age = (datetime.now(timezone.utc) - moment).total_seconds()
    check(-5 < age < 300, f"{what}: {moment} is not recent")


def check_tunnels(tunnels):
    before = {tunnel.id for tunnel in tunnels.list(limit=1000)}
    first = tunnels.create()
    same(first.type, "tunnel", "type")
    same(first.display_name, None, "a name is optional")
    same(first.archived_at, None, "a new tunnel is not archived")
    check(re.fullmatch(r"tnl_[A-Za-z0-9]+", first.id), f"id {first.id}")
    check(re.fullmatch(r"[a-z0-9]{4,32}(\.[a-z0-9-]+)+", first.domain), f"domain {first.domain}")
    recent(first.created_at, "created_at")
    names = ["second", "caf\u00e9 \u2603", "x" * 255]
    made = [first] + [tunnels.create(display_name=name, betas=["output-300k-2026-03-24"]) for name in names]
    same([tunnel.display_name for tunnel in made], [None] + names, "names")
    same(len({tunnel.domain for tunnel in made}), 4, "domains differ")
    same(tunnels.retrieve(first.id), first, "retrieve")

    listed = [tunnel for tunnel in tunnels.list(limit=2) if tunnel.id not in before]
    same(listed, made[::-1], "auto-pagination, newest first")
    page = tunnels.list(limit=1)
    check(page.has_next_page() and page.next_page, "a page of one has a next page")
    same(page.get_next_page().data[0], made[2], "second page")
    same(tunnels.list(limit=1000).next_page, None, "the last page")

    for tunnel in made[1:]:
        archived = tunnels.archive(tunnel.id)
        recent(archived.archived_at, "archived_at")
        same(tunnels.archive(tunnel.id), archived, "archiving again returns the same record")
        same(tunnels.retrieve(tunnel.id), archived, "an archived tunnel is kept")
    hidden = {tunnel.id for tunnel in made[1:]}
    check(hidden.isdisjoint(tunnel.id for tunnel in tunnels.list()), "archived tunnels are not listed")
    shown = {tunnel.id for tunnel in tunnels.list(include_archived=True, limit=3)}
    check(hidden <= shown, "archived tunnels are listed on demand")
    return first


def check_tokens(tunnels, tunnel):
    raw = tunnels.with_raw_response.reveal_token(tunnel.id)
    same(raw.headers.get("cache-control"), "no-store", "a revealed token is not cached")
    check(raw.headers.get("anthropic-organization-id"), "no anthropic-organization-id")
    check(raw.headers.get("anthropic-workspace-id"), "no anthropic-workspace-id")
    token = raw.parse()
    same(token.type, "tunnel_token", "type")
    same(sorted(json.loads(base64.b64decode(token.tunnel_token))), ["a", "s", "t"], "token form")
    same(token.id, "ttkn_" + hashlib.sha256(token.tunnel_token.encode()).hexdigest(), "token id")
    same(tunnels.reveal_token(tunnel.id), token, "a token is the same until it is rotated")
    rotated = tunnels.rotate_token(tunnel.id, reason="test")
    check(rotated.id != token.id and rotated.tunnel_token != token.tunnel_token, "rotation changes id and value")
    same(tunnels.reveal_token(tunnel.id), rotated, "the new token is revealed")
    check(tunnels.rotate_token(tunnel.id).id != rotated.id, "a reason is optional")


def check_certificates(tunnels, tunnel, pem, pem2):
    certificates = tunnels.certificates
    same(certificates.list(tunnel.id).data, [], "a new tunnel has no certificates")
    one = certificates.create(tunnel.id, ca_certificate_pem=pem)
    same((one.type, one.tunnel_id, one.archived_at), ("tunnel_certificate", tunnel.id, None), "certificate")
    check(re.fullmatch(r"tcrt_[A-Za-z0-9]+", one.id), f"id {one.id}")
    same(one.fingerprint, hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.strip())).hexdigest(), "fingerprint")
    check(one.expires_at is None or one.expires_at > datetime.now(timezone.utc), "expires_at")
    recent(one.created_at, "created_at")
    two = certificates.create(tunnel.id, ca_certificate_pem=pem2)
    same(certificates.retrieve(one.id, tunnel_id=tunnel.id), one, "retrieve")
    same(list(certificates.list(tunnel.id, limit=1)), [two, one], "auto-pagination, newest first")

    archived = certificates.archive(one.id, tunnel_id=tunnel.id)
    recent(archived.archived_at, "archived_at")
    same(certificates.archive(one.id, tunnel_id=tunnel.id), archived, "archiving again returns the same record")
    same(certificates.list(tunnel.id).data, [two], "archived certificates are not listed")
    same(certificates.list(tunnel.id, include_archived=True).data, [two, archived], "they are on demand")

    for bad in ["", "not a certificate", "x" * 8193]:
        refused(
            anthropic.BadRequestError, 400, "a bad certificate",
            lambda: certificates.create(tunnel.id, ca_certificate_pem=bad),
        )
    refused(
        anthropic.NotFoundError, 404, "an unknown certificate",
        lambda: certificates.retrieve("tcrt_nosuch", tunnel_id=tunnel.id),
    )
    other = tunnels.create()
    refused(
        anthropic.NotFoundError, 404, "a certificate of another tunnel",
        lambda: certificates.retrieve(two.id, tunnel_id=other.id),
    )
    tunnels.archive(other.id)
    tunnels.archive(tunnel.id)
    left = certificates.list(tunnel.id, include_archived=True).data
    check(all(certificate.archived_at for certificate in left), "certificates are archived with their tunnel")
    error = refused(
        anthropic.ConflictError, 409, "a certificate for an archived tunnel",
        lambda: certificates.create(tunnel.id, ca_certificate_pem=pem),
    )
    same(error.response.headers.get("x-should-retry"), "false", "retrying is of no use")
    refused(anthropic.ConflictError, 409, "a token of an archived tunnel", lambda: tunnels.reveal_token(tunnel.id))


def check_refusals(base_url, manage_key, use_key, tunnels):
    def client(**credential):
        return anthropic.Anthropic(base_url=base_url, max_retries=0, **credential).beta.tunnels

    refused(anthropic.AuthenticationError, 401, "an unknown key", client(api_key="sortie-manage-guess").list)
    refused(anthropic.AuthenticationError, 401, "an unknown bearer", client(auth_token="guess").create)
    refused(anthropic.PermissionDeniedError, 403, "a use key", client(api_key=use_key).list)
    check(client(auth_token=manage_key).list() is not None, "a manage key as bearer")
    workspace = tunnels.with_raw_response.list().headers["anthropic-workspace-id"]
    tunnels.list(workspace_id=workspace)
    refused(
        anthropic.PermissionDeniedError, 403, "another workspace", lambda: tunnels.list(workspace_id="wrkspc_nosuch")
    )
    refused(anthropic.NotFoundError, 404, "an unknown tunnel", lambda: tunnels.retrieve("tnl_nosuch"))
    refused(anthropic.NotFoundError, 404, "an id of another kind", lambda: tunnels.archive("nonsense"))
    refused(anthropic.BadRequestError, 400, "an empty name", lambda: tunnels.create(display_name=""))
    refused(anthropic.BadRequestError, 400, "a long name", lambda: tunnels.create(display_name="x" * 256))
    refused(anthropic.BadRequestError, 400, "an unknown field", lambda: tunnels.create(extra_body={"nam": "x"}))
    refused(anthropic.BadRequestError, 400, "a page of nothing", lambda: tunnels.list(limit=0))
    refused(anthropic.BadRequestError, 400, "a page too large", lambda: tunnels.list(limit=1001))
    refused(anthropic.BadRequestError, 400, "a made-up cursor", lambda: tunnels.list(page="page_AAAA"))
    refused(
        anthropic.BadRequestError, 400, "an unknown version",
        lambda: tunnels.list(extra_headers={"anthropic-version": "1999-01-01"}),
    )
    error = refused(
        anthropic.BadRequestError, 400, "an unknown feature", lambda: tunnels.list(betas=["mcp-tunnels-2099-01-01"])
    )
    check("`mcp-tunnels-2099-01-01`" in error.body["error"]["message"], f"no feature is named: {error}")
    tunnels.list(extra_headers={"anthropic-version": "2023-06-01"}, extra_query={"beta": "true"})


def check_no_retries(base_url, manage_key, pem):
    """What will not succeed by itself is not tried again, although the SDK may."""
    tunnels = anthropic.Anthropic(base_url=base_url, api_key=manage_key, max_retries=2).beta.tunnels

    def refused_once(kind, status, what, call):
        error = refused(kind, status, what, call)
        same(error.response.headers.get("x-should-retry"), "false", f"{what}: x-should-retry")
        same(error.response.request.headers["x-stainless-retry-count"], "0", f"{what}: attempts")
        return error

    made = [tunnels.create()]
    tunnels.archive(made[0].id)
    refused_once(
        anthropic.ConflictError, 409, "an archived tunnel",
        lambda: tunnels.certificates.create(made[0].id, ca_certificate_pem=pem),
    )
    key = {"Idempotency-Key": made[0].id}
    once = tunnels.with_raw_response.create(display_name="once", extra_headers=key)
    again = tunnels.with_raw_response.create(display_name="once", extra_headers=key)
    same(again.parse(), once.parse(), "the same idempotency key")
    same((once.headers.get("idempotent-replayed"), again.headers.get("idempotent-replayed")), (None, "true"), "replayed")
    refused_once(
        anthropic.ConflictError, 409, "an idempotency key of another request",
        lambda: tunnels.create(display_name="twice", extra_headers=key),
    )
    made.append(once.parse())
    try:
        for _ in range(100):
            made.append(tunnels.create())
        sys.exit("tunnels_api: there is no limit of tunnels")
    except anthropic.BadRequestError:
        error = refused_once(anthropic.BadRequestError, 400, "the limit of tunnels", tunnels.create)
        expected = r"Organization already has the maximum of \d+ non-archived Tunnels"
        check(re.fullmatch(expected, error.body["error"]["message"]), f"the limit: {error.body}")
    finally:
        for tunnel in made[1:]:
            tunnels.archive(tunnel.id)


def check_lost_answers(lossy_url, manage_key):
    """A creation whose answer is lost makes one tunnel, since the SDK tries again by itself."""
    tunnels = anthropic.Anthropic(base_url=lossy_url, api_key=manage_key, max_retries=2).beta.tunnels
    before = tunnels.with_raw_response.create(display_name="lost")
    same(before.http_request.headers["x-stainless-retry-count"], "2", "attempts")
    made = before.parse()
    same([tunnel.id for tunnel in tunnels.list()], [made.id], "one tunnel, which the SDK knows")
    second = tunnels.create(display_name="lost")
    check(second.id != made.id, "the next creation makes another tunnel")
    for tunnel in (made, second):
        tunnels.archive(tunnel.id)


def main():
    if len(sys.argv) == 3:
        check_lost_answers(*sys.argv[1:])
        print(f"tunnels_api: no spare tunnel with anthropic {anthropic.__version__}")
        return
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    base_url, manage_key, use_key, pem_file, pem2_file = sys.argv[1:]
    pem, pem2 = (open(name, encoding="ascii").read() for name in (pem_file, pem2_file))
    tunnels = anthropic.Anthropic(base_url=base_url, api_key=manage_key, max_retries=0).beta.tunnels
    tunnel = check_tunnels(tunnels)
    check_tokens(tunnels, tunnel)
    check_certificates(tunnels, tunnel, pem, pem2)
    check_refusals(base_url, manage_key, use_key, tunnels)
    check_no_retries(base_url, manage_key, pem)
    print(f"tunnels_api: all as expected with anthropic {anthropic.__version__}")


if __name__ == "__main__":
    main()

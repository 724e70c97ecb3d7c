"""Verifies mail with dkimpy. Arguments: the resolver's address and port, and arc
to verify the ARC sets in place of the DKIM signatures.

On standard input comes mail after mail, each after a line with its length; for
each, a line of JSON goes out: a list of domain, selector, pass and detail."""

import json
import sys

import dkim
import dns.resolver

resolver = dns.resolver.Resolver(configure=False)
resolver.nameservers = [sys.argv[1]]
resolver.port = int(sys.argv[2])
resolver.lifetime = 30


def txt(name, timeout=5):
    try:
        answer = resolver.resolve(name.decode().rstrip("."), "TXT")
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return None
    return b"".join(answer[0].strings)


def signatures(message):
    checker = dkim.DKIM(message)
    count = sum(name.lower() == b"dkim-signature" for name, _ in checker.headers)
    for i in range(count):
        checker = dkim.DKIM(message)
        passed, detail = False, ""
        try:
            passed = checker.verify(idx=i, dnsfunc=txt)
        except dkim.DKIMException as e:
            detail = str(e)
        fields = checker.signature_fields
        yield {
            "domain": fields.get(b"d", b"").decode(),
            "selector": fields.get(b"s", b"").decode(),
            "pass": passed,
            "detail": detail,
        }


def chain(message):
    checker = dkim.ARC(message)
    cv, results, reason = checker.verify(dnsfunc=txt)
    for r in results:
        yield {
            "domain": r["as-domain"].decode(),
            "selector": r["as-selector"].decode(),
            "pass": cv == dkim.CV_Pass and bool(r["as-valid"] and r["ams-valid"]),
            "detail": reason,
        }


judge = chain if sys.argv[3:] == ["arc"] else signatures
while line := sys.stdin.buffer.readline():
    print(json.dumps(list(judge(sys.stdin.buffer.read(int(line))))), flush=True)

"""What differs, and whether the table says why."""

import fnmatch
import os
import tomllib

TABLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "differences.toml")

# What proxies add of their own, and what is between two neighbours only.
ADDED = {b"via", b"forwarded", b"date", b"server", b"x-request-id", b"connection", b"keep-alive", b"content-length",
         b"transfer-encoding"}
ADDED_PREFIXES = (b"x-forwarded-", b"x-envoy-", b"x-isthmus-", b"l5d-")
BODILESS = (204, 304)
PEERS = ("envoy", "haproxy")


def own(message, keep=()):
    """The fields that are neither added nor hop-by-hop: name -> values."""
    found = {}
    for name, value in message.fields:
        if name in keep or not (name in ADDED or name.startswith(ADDED_PREFIXES)):
            found.setdefault(name, []).append(value)
    return found


def differences(request, ours, theirs):
    """Stable words for each thing that differs."""
    if ours.verdict != theirs.verdict:
        return [f"verdict: {ours.verdict}, not {theirs.verdict}"]
    if ours.verdict != "forwarded":
        return []
    found = []
    mine, yours = ([one for one in outcome.seen if one.complete] for outcome in (ours, theirs))
    if len(mine) != len(yours):
        found.append(f"requests: {len(mine)}, not {len(yours)}")
    for a, b in zip(mine, yours):
        found += of_requests(a, b)
    found += of_answers(request, ours, theirs)
    return list(dict.fromkeys(found))


def of_requests(a, b):
    found = []
    if a.method != b.method:
        found.append("method")
    if a.target != b.target:
        found.append("target")
    if a.body != b.body:
        found.append("body")
    if a.trailers != b.trailers:
        found.append("trailers")
    return found + of_fields("field", own(a), own(b))


def of_fields(what, a, b):
    names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
    said = []
    for name in names:
        shown = name.decode("latin1")
        how = "only theirs" if name not in a else "only ours" if name not in b else "differs"
        said.append(f"{what} {shown}: {how}")
    return said


def of_answers(request, ours, theirs):
    a, b = ours.answers, theirs.answers
    found, seen = [], len([one for one in ours.seen if one.complete])
    if [one.status for one in a] != [one.status for one in b]:
        shown = [",".join(str(one.status) for one in answers[:3]) or "none" for answers in (a, b)]
        return [f"status: {shown[0]}, not {shown[1]}"]
    for place, (one, other) in enumerate(zip(a, b)):
        if place >= seen or one.all(b"isthmus-error"):
            continue  # each refuses in its own words
        bodiless = one.status in BODILESS or (place < len(request.heads) and request.heads[place])
        keep = {b"content-length"} if bodiless else ()
        found += of_fields("answer field", own(one, keep), own(other, keep))
        if one.body != other.body:
            found.append("answer body")
        if one.trailers != other.trailers:
            found.append("answer trailers")
        if one.complete != other.complete:
            found.append("answer complete: " + ("ours" if one.complete else "theirs"))
    if ours.interim != theirs.interim:
        found.append("interim answers")
    if ours.connection != theirs.connection:
        found.append(f"connection: {ours.connection}, not {theirs.connection}")
    return found


class Table:
    """differences.toml: what is excused, and by which reason."""

    def __init__(self, way, path=TABLE):
        with open(path, "rb") as file:
            reasons = tomllib.load(file).get("reason", [])
        self.patterns = []  # (peer, what, request, [how often])
        for reason in reasons:
            why, hops = reason.pop("why"), reason.pop("hops", [way])
            if not reason or set(reason) - {"envoy", "haproxy", "both"} or "RFC" not in why:
                raise SystemExit(f"differences.toml: envoy, haproxy or both, and a why that names its RFC: {why}")
            for named, whats in reason.items() if way in hops else ():
                self.patterns += [(peer, what, request, [0]) for peer in (PEERS if named == "both" else [named])
                                  for what, requests in whats.items() for request in requests]

    def explains(self, peer, what, request):
        found = False
        for known_peer, known_what, pattern, count in self.patterns:
            if (known_peer, known_what) == (peer, what) and matches(request, pattern):
                count[0] += 1
                found = True
        return found

    def expected(self, peer, request):
        """What the table says of a request."""
        return {what for known, what, pattern, _ in self.patterns if known == peer and matches(request, pattern)}

    def unused(self, peer):
        """What no longer occurs."""
        return [f"{what} · {request}" for known, what, request, count in self.patterns
                if known == peer and not count[0]]


def matches(text, pattern):
    """`*` alone is special: names have brackets and question marks in them."""
    escaped = pattern.replace("[", "[[]").replace("?", "[?]")
    return fnmatch.fnmatchcase(text, escaped)

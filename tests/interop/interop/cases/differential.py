"""The same requests through us, Envoy and HAProxy: see differential/."""

import os

from bench import certs
from bench.proxies import envoy

from ..case import case, holds
from ..differential import compare
from ..differential.run import LEAST, Run

IDEMPOTENT = {b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"}
# The runs so far, by way; what was raised instead of one.
RUNS = {}


def run_of(way):
    """Once for all cases, also if it failed."""
    if way not in RUNS:
        try:
            RUNS[way] = Run(way)
        except Exception as error:
            RUNS[way] = error
    if isinstance(RUNS[way], Exception):
        raise RUNS[way]
    return RUNS[way]


def differential(name):
    return case(f"differential/{name}", ["raw"], ["haproxy", envoy.binary()])


@differential("what we forward is well-formed")
def well_formed(way):
    """Whatever came, no reader behind us could understand it differently."""
    run = run_of(way)
    holds(len(run.requests) >= LEAST, f"only {len(run.requests)} requests")
    bad = {name: one.malformed for name, outcome in run.ours.outcomes.items() for one in outcome.seen if one.malformed}
    holds(not bad, f"{bad}")


@differential("what we answer is well-formed")
def well_formed_answers(way):
    run = run_of(way)
    bad = {name: one.malformed for name, outcome in run.ours.outcomes.items()
           for one in outcome.answers if one.malformed}
    holds(not bad, f"{bad}")


@differential("identities come from certificates")
def identities(way):
    """No head and no trailer of a client says who called."""
    allowed = [] if way.label == "one-hop" else [certs.CHECKOUT.encode()]
    bad = {}
    for request, outcome in run_of(way).ours.outcomes.items():
        for one in outcome.seen:
            said = [value for name, value in one.fields + one.trailers if name == b"x-isthmus-client-id"]
            if said != allowed:
                bad[request] = said
    holds(not bad, f"{bad}")


@differential("one request and one answer for each")
def no_smuggling(way):
    """An application sees no request that was not sent, and no client an
    answer to what it has not asked; the table excuses nothing of it."""
    run = run_of(way)
    bad = [f"{request.name}: {problem}" for request in run.requests
           for problem in problems(request, run.ours.outcomes[request.name])]
    holds(not bad, "; ".join(bad))


def problems(request, outcome):
    complete = [one for one in outcome.seen if one.complete]
    if any(one.target == b"/smuggled" for one in outcome.seen):
        yield "the smuggled request"
    if len(complete) > request.count and not is_repeated(complete, outcome):
        yield f"{len(complete)} requests"
    if len(outcome.answers) > request.count:
        yield f"{len(outcome.answers)} answers"
    if outcome.connection == "confused":
        yield "another answer than to the probe"
    if outcome.connection == "stuck" and outcome.answers:
        yield "stuck after the answer"


def is_repeated(seen, outcome):
    """Sent again after there was no answer, which is allowed for what is
    idempotent (RFC 9110 section 9.2.2)."""
    same = all((one.first, one.body) == (seen[0].first, seen[0].body) for one in seen)
    return same and seen[0].method in IDEMPOTENT and [one.status for one in outcome.answers] == [502]


def against(peer):
    @differential(f"against {peer}")
    def check(way):
        table = compare.Table(way.label)
        found = run_of(way).differences(peer)
        new = [f"{what} · {request}" for request, what in found if not table.explains(peer, what, request)]
        with open(os.path.join(way.directory, f"differences-{peer}.txt"), "w") as file:
            file.writelines(f"{what}\t{request}\n" for request, what in found)
        unused = table.unused(peer)
        text = []
        if new:
            text += [f"{len(new)} of {len(found)} differences are not in differences.toml:", *sorted(new)[:150]]
        if unused:
            text += [f"{len(unused)} entries of differences.toml do not occur any more:", *unused[:50]]
        holds(not text, "\n".join(text))


for name in ("envoy", "haproxy"):
    against(name)

"""Waiting, with an end."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request

from interop.process import Failed

# A debug build, and a JVM, on a busy machine.
LONG = 90


def until(what, holds, within=LONG, every=0.1):
    """The first result of `holds` that is one; Failed after `within` seconds."""
    end, problem = time.monotonic() + within, ""
    while True:
        try:
            result = holds()
            if result:
                return result
        except (OSError, ValueError, LookupError, Failed) as error:
            problem = f": {error}"
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {within} s{problem}")
        time.sleep(every)


def get(url, **query):
    """The body of an answer that went well."""
    if query:
        url += "?" + urllib.parse.urlencode(query, doseq=True)
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read()


def get_json(url, **query):
    return json.loads(get(url, **query))

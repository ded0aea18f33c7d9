#!/usr/bin/env python3
"""Delegation tables by chance, and names: ours must make of them what Finagle makes.

    FINAGLE=DIR finagle.py      DIR is what tests/migrate/setup has made

MIGRATE_COUNT configurations of others are worth 10 tables each; MIGRATE_SEED is the
first seed. Both must refuse a table, or read the same and print what the other reads as
the same; and bind a name to the same leaves with the same shares. Ends with 1 if not.
"""

import json, os, random, re, subprocess, sys, tempfile

COUNT = int(os.environ.get("MIGRATE_COUNT", "40")) * 10
SEED = int(os.environ.get("MIGRATE_SEED", "1"))
TARGET = os.environ.get("CARGO_TARGET_DIR", "target")
OURS = os.environ.get("LINKERD1", f"{TARGET}/debug/examples/linkerd1")
FINAGLE = os.environ.get("FINAGLE") or sys.exit("FINAGLE is the directory of tests/migrate/setup")
# What is deep fails deep: the traces of the stack would take gigabytes.
JAVA = ["-XX:MaxJavaStackTraceDepth=8", "-XX:TieredStopAtLevel=1", "-Xmx512m"]

COMMON = ["a", "b", "c", "svc", "web"]
RARE = ["x.y", "80", "#", "$", "%2f", "-", "A", "_:_", r"\x41", r"a\x20b", r"\x2f", r"\xff", r"\xC3\xa9", "s", "d", "x"]
BOUND = [
    "/$/inet/127.1/8080", "/$/inet/127.1/8080/r", "/$/inet/8080", "/$/inet/127.1", "/$/inet",
    "/$/inet/127.1/99999", "/$/inet/127.1/-1", r"/$/inet/127.1/\x2b80", "/$/inet/127.1/99999999999", "/$/fixedinet/127.1/1",
    "/$/nil", "/$/fail", "/$/nil/x", "/$", "/$/com.example.Missing", "/#/d/a", "/#/d/s", "/#/d",
    "/#/d/s/y", "/#/r/80/a/web", "/#/r/80/a/api/x", "/#/r/80", "/#/go/x", "/#/go", "/#/none", "/#",
]
WEIGHTS = ["", "", "", "1*", "0.5 * ", ".25*", "2. *", "0*", "00.10*", "3 *", "1.005*", "0.001*", "123456789*"]
BLANKS = ["", " ", " ", "  ", "\n", "\t", "\r\n", " # why; => (|\n", "\f"]
ODD = ["\u00a0", "\u0085", "\u2003", "\u2007", "\u202f", "\u001c", "\u001f", "\u200b", "\ufeff", "\u3000", "\v"]
NOISE = list("/|&*()!~$;=>\\x#%. 0a\n\"'+-[]") + ["é", "\uffff", "\U0001f600", "\u0663", "\\x4", "\\xzz", "//", "/*", "=>"]


class Chance(random.Random):
    oddity = 0

    def some(self, share):
        return self.random() < share

    def blank(self):
        return self.choice(ODD) if self.some(self.oddity) else self.choice(BLANKS)

    def label(self):
        return self.choice(RARE if self.some(0.15) else COMMON)

    def labels(self, few, many):
        return "".join("/" + self.label() for _ in range(self.randint(few, many)))

    def leaf(self):
        if self.some(0.45):
            return self.choice(BOUND)
        return self.labels(0, 3) or "/"

    def simple(self, depth):
        if depth and self.some(0.3):
            return f"({self.blank()}{self.tree(depth - 1)}{self.blank()})"
        return self.choice("~!$") if self.some(0.15) else self.leaf()

    def union(self, depth):
        count = self.choice([1, 1, 1, 1, 2, 2, 3])
        weight = lambda: self.choice(WEIGHTS) if count > 1 or self.some(0.05) else ""
        return "&".join(f"{self.blank()}{weight()}{self.simple(depth)} " for _ in range(count))

    def tree(self, depth):
        return "|".join(self.union(depth) for _ in range(self.choice([1, 1, 1, 2, 2, 3])))

    def prefix(self):
        if self.some(0.08):
            return self.choice(["/", "/#", "/#/d", "/#/*", "/$", "/$/inet", "/*/*", "/$/nil", "/#/none"])
        return "".join("/*" if self.some(0.15) else "/" + self.label() for _ in range(self.randint(1, 3)))

    def entry(self):
        return f"{self.blank()}{self.prefix()}{self.choice([' ', self.blank()])}=>{self.tree(2)}{self.blank()}"

    def table(self):
        if self.some(0.05):
            return self.chain()
        text = ";".join(self.entry() for _ in range(self.choice([0, 1, 2, 3, 4, 6, 9])))
        return text + (";" + self.blank() if self.some(0.2) else "")

    def chain(self):
        """As many steps as Finagle takes, or one more."""
        steps = self.randint(97, 102)
        ends = self.choice(["/$/inet/127.1/80", "~", "!", "$", "/none", "/#/go/x", "/a | /$/inet/127.1/80", "/a & /$/nil"])
        links = [f"/c{n}=>/c{n + 1}" for n in range(steps)]
        return ";".join([f"/a=>/c0;/c{steps}=>{ends}", *links])

    def spoiled(self, text):
        for _ in range(self.choice([1, 1, 2])):
            at = self.randint(0, len(text))
            text = text[:at] + (self.choice(NOISE) if self.some(0.6) else "") + text[at + self.choice([0, 1]):]
        return text

    def path(self, dtab):
        if self.some(0.1):
            return self.choice(BOUND) + self.labels(0, 2)
        if dtab.startswith("/a=>/c0;"):
            return "/a" + self.labels(0, 2)
        known = re.findall(r"(/[^\s;]+)\s*(?:# why.*\s*)?=>", dtab)
        if known and self.some(0.8):
            return re.sub(r"\*", lambda _: self.label(), self.choice(known)) + self.labels(0, 2)
        return self.labels(0 if self.some(0.1) else 1, 4) or "/"


def cases(seed):
    chance = Chance(f"finagle {seed}")
    chance.oddity = 0.02 if chance.some(0.08) else 0
    dtab = chance.table()
    path = chance.path(dtab)
    if chance.some(0.12):
        dtab = chance.spoiled(dtab)
    if chance.some(0.06):
        path = chance.choice([chance.spoiled(path), " " + path + "\n", path + " # x", path + "/"])
    return {"dtab": dtab, "path": path, "bare": chance.some(0.3)}


class Peer:
    """Answers line by line."""

    def __init__(self, *command):
        self.said = tempfile.TemporaryFile()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said)

    def ask(self, case):
        try:
            self.process.stdin.write(json.dumps(case).encode() + b"\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            self.said.seek(0)
            sys.exit(f"{self.process.args[0]} has ended at {case}: {self.said.read().decode()[-2000:]}")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)


def numbers(tree):
    """A tree of a table with its weights as numbers."""
    if isinstance(tree, str):
        return tree
    if tree[0] == "&":
        return ["&", *([float(weight), numbers(below)] for weight, below in tree[1:])]
    return ["|", *map(numbers, tree[1:])]


def table(answer):
    if "wrong" in answer:
        return "is refused"
    return [[prefix, numbers(tree)] for prefix, tree in answer["dtab"]]


def bound(answer):
    if "wrong_path" in answer or "wrong" in answer:
        return "is refused"
    if "failed" in answer["bound"]:
        return "fails"
    return [leaf[1:] + [round(leaf[0], 9)] for leaf in answer["bound"]["leaves"]]


def is_too_much(answer):
    """Both have limits of their own where a table branches without end."""
    return "too_much" in answer or "branches too much" in answer.get("bound", {}).get("failed", "")


def differences(theirs, own, finagle, ours):
    if table(theirs) != table(own):
        yield "table", theirs, own
    if "wrong" in theirs or "wrong" in own:
        return
    if theirs.get("path") != own.get("path"):
        yield "path", theirs, own
    if not is_too_much(theirs) and not is_too_much(own) and bound(theirs) != bound(own):
        yield "bound", theirs, own
    if theirs.get("default", theirs.get("bound")) != theirs.get("bound"):
        yield "default interpreter", theirs, own
    again = finagle.ask({"dtab": own["show"], "path": "/"})
    if table(again) != table(theirs):
        yield "as ours prints it", again, theirs
    shown = {"dtab": theirs["show"], "path": "/"}
    theirs, own = finagle.ask(shown), ours.ask(shown)
    if table(theirs) != table(own):
        yield "as Finagle prints it", theirs, own


def kind(answer):
    """What a case has shown, so that a generator that shows nothing is seen."""
    said = bound(answer) if "too_much" not in answer else "is too much"
    if isinstance(said, str):
        return "table refused" if "wrong" in answer else said
    return "shares" if len(said) > 1 else said[0][0] if len(said[0]) == 2 else "leaf"


def main():
    world = subprocess.run([OURS, "world"], check=True, capture_output=True, text=True).stdout
    ours = Peer(OURS)
    finagle = Peer("java", *JAVA, "-cp", f"{FINAGLE}/classes:{FINAGLE}/jars/*", "Delegate", world)
    wrong, kinds = 0, {}
    for seed in range(SEED, SEED + COUNT):
        case = cases(seed)
        answers = finagle.ask(case), ours.ask(case)
        for what, theirs, own in differences(*answers, finagle, ours):
            wrong += 1
            if wrong <= 10:
                print(f"seed {seed}: {what} differs: {json.dumps(case)}\n  Finagle {json.dumps(theirs)}\n  ours    {json.dumps(own)}")
        found = kind(answers[0])
        kinds[found] = kinds.get(found, 0) + 1
    ours.close()
    finagle.close()
    print(f"{COUNT} tables: {wrong} differences; {', '.join(f'{n} {k}' for k, n in sorted(kinds.items()))}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

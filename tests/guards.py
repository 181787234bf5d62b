#!/usr/bin/env python3
"""Breaks one guard of the engine at a time and demands that the model test notices: a guard whose loss nobody sees is
not guarded.

    tests/guards.py                 all of them
    tests/guards.py parallelism     one, by its name
    tests/guards.py --list

A guard is a line without which a promise of src/engine/mod.rs would be broken. Each is an exact piece of source text
and what stands there when it is gone; a text that is not found exactly once fails, so that the list cannot rot. The
work is done in a copy of the checkout, with a target directory of its own: only our package is built anew.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCHEDULES = os.environ.get("PMP_MODEL_SCHEDULES", "6000")
SECONDS_MAX = 900  # a break may make the engine run for ever, which is noticed too

# name: (file below src/engine, what guards, what is left without it)
GUARDS = {
    "token": (
        "reports.rs",
        ".map_or(About::Stale, About::Forgotten)",
        ".map_or(About::Unnamed, About::Forgotten)",
    ),
    "stale-report": (
        "reports.rs",
        "if about == About::Stale {\n            return self.note(NoteKind::StaleToken, &report.phase);",
        "if false {\n            return self.note(NoteKind::StaleToken, &report.phase);",
    ),
    "terminal-is-final": (
        "reports.rs",
        "() if !is_waiting || report.token.is_some() =>",
        "() if report.token.is_some() =>",
    ),
    "waits": (
        "offers.rs",
        "row.record.state == PhaseState::Waiting && row.unmet == 0 && row.record.due.is_none()",
        "row.record.state == PhaseState::Waiting && row.record.due.is_none()",
    ),
    "max-attempts": (
        "outcome.rs",
        "let has_tries = row.record.attempt < spec.max_attempts;",
        "let has_tries = true;",
    ),
    "one-open-attempt": (
        "reports.rs",
        "if row.is_open() && !state.is_bound() {",
        "if row.is_open() {",
    ),
    "holder-alone-is-believed": (
        "reports.rs",
        "let is_holder = same_runtime(row.record.runtime.as_deref(), report.runtime.as_deref());",
        "let is_holder = true;",
    ),
    "parallelism": (
        "offers.rs",
        "while self.has_slot() {",
        "loop {",
    ),
    "suspend": (
        "offers.rs",
        "            && self.settings.pace == Pace::Going\n",
        "",
    ),
    "handlers-once": (
        "outcome.rs",
        "return self.back_off(ix, reason, message, advice, now);",
        "self.push_handler(ix, HandlerKind::Failure);\n"
        "            return self.back_off(ix, reason, message, advice, now);",
    ),
    "run-raised-by-people": (
        "outcome.rs",
        "let run = record.run + 1;",
        "let run = record.run;",
    ),
    "run-raised-by-edits": (
        "edit.rs",
        "let run = record.run + 1;",
        "let run = record.run;",
    ),
    "run-of-removed-phases": (
        "edit.rs",
        "let floor = self.runs_removed + 1;",
        "let floor = 1;",
    ),
    "no-grant-in-silence": (
        "reports.rs",
        "let may_grant = self.listening_until.is_none() && (",
        "let may_grant = (",
    ),
    "no-offer-in-silence": (
        "offers.rs",
        "            && self.listening_until.is_none()\n",
        "",
    ),
    "no-clock-while-deaf": (
        "steering.rs",
        "if self.gate == OffersGate::Deaf {\n            return;",
        "if false {\n            return;",
    ),
    "no-clock-in-silence": (
        "steering.rs",
        "Some(until) if now < until => return,",
        "Some(until) if now < until => {}",
    ),
    "store-first": (
        "offers.rs",
        "            && !self.unstored\n",
        "",
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="GUARD")
    parser.add_argument("--list", action="store_true", help="name the guards and check that each is where it should be")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(GUARDS))
    if unknown:
        parser.error(f"no such guard: {', '.join(unknown)}; there are {', '.join(GUARDS)}")
    missing = [name for name, guard in GUARDS.items() if found(ROOT, guard) != 1]
    if missing:
        sys.exit(f"guards: the source text of these is not there exactly once, mend tests/guards.py: {' '.join(missing)}")
    if options.list:
        return print("\n".join(GUARDS))
    with tempfile.TemporaryDirectory(prefix="pmp-guards-") as scratch:
        survived = check(copy_of_checkout(pathlib.Path(scratch) / "checkout"), options.names or list(GUARDS))
    if survived:
        sys.exit(f"guards: no schedule notices when these are broken: {' '.join(survived)}")


def check(checkout, names):
    """Breaks each in turn; answers with those that nothing notices."""
    if verdict(checkout) != "passed":
        sys.exit("guards: the model test fails before anything is broken")
    survived = []
    for name in names:
        began = time.monotonic()
        path, guard, broken = source(checkout, GUARDS[name]), GUARDS[name][1], GUARDS[name][2]
        whole = path.read_text()
        path.write_text(whole.replace(guard, broken))
        try:
            outcome = verdict(checkout)
        finally:
            path.write_text(whole)
        if outcome == "passed":
            survived.append(name)
            outcome = "SURVIVED"
        print(f"guards: {name}: {outcome} ({time.monotonic() - began:.0f} s)", flush=True)
    if not survived:
        print(f"guards: all {len(names)} are noticed")
    return survived


def verdict(checkout):
    """`passed`, or how the model test noticed. A break that does not compile proves nothing and ends all."""
    environment = {**os.environ, "PMP_MODEL_SCHEDULES": SCHEDULES}
    environment.setdefault("CARGO_TARGET_DIR", str(ROOT / "target" / "guards"))
    cargo = [os.environ.get("CARGO", "cargo"), "test", "--quiet", "--test", "it"]
    built = subprocess.run([*cargo, "--no-run"], cwd=checkout, env=environment, capture_output=True, text=True)
    if built.returncode:
        sys.exit(f"guards: this does not compile:\n{built.stderr}")
    try:
        ran = subprocess.run([*cargo, "model::"], cwd=checkout, env=environment, capture_output=True, text=True,
                             timeout=SECONDS_MAX)
    except subprocess.TimeoutExpired:
        return "noticed by a run that does not end"
    if ran.returncode == 0:
        return "passed"
    failed = sorted({line.split()[1].removeprefix("model::") for line in ran.stdout.splitlines()
                     if line.startswith("---- ") and len(line.split()) > 1})
    return f"noticed by {', '.join(failed) or 'a run that ended early'}"


def source(checkout, guard):
    return checkout / "src" / "engine" / guard[0]


def found(checkout, guard):
    return source(checkout, guard).read_text().count(guard[1])


def copy_of_checkout(to):
    """Everything that git knows or would add, as it is now."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                            check=True, capture_output=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to / name)  # with the time of now: cargo tells checkouts apart by that alone
    return to


if __name__ == "__main__":
    main()

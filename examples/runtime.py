#!/usr/bin/env python3
"""A PMP runtime in one file: takes the phases that pmp-operator offers on NATS and runs their x-exec commands.

    pip install nats-py
    python runtime.py --nats nats://localhost:4222 --label site=lab --allow-exec

It keeps the rules of a good runtime (docs/runtimes.md):
  - it begins only after the operator has answered its ack with x-granted: true, so no phase ever runs twice;
  - it stays silent about phases whose labels it does not carry, and declines those that it cannot do;
  - offered an attempt that it holds or has finished, it says again what it knows;
  - it says `running` every ten seconds (--heartbeat), so that its silence can be told from long work;
  - it stops an attempt when .control says so, and answers .control x-report at once;
  - it says how an attempt ended until a stream, or else a live connection, has taken it, and once more after a reconnect;
  - on SIGTERM it takes nothing new, lets what runs finish for --drain seconds, stops the rest, and reports it all; a second
    one kills what runs and ends at once.

`pmp runtime` does more: commands from a directory, and no offers while the server denies what it needs, which is only logged
here.
"""

import argparse
import asyncio
import json
import logging
import os
import secrets
import signal
import sys
import time
from datetime import datetime, timezone

import nats

OUTCOMES_KEPT = 3600  # seconds that the end of an attempt is remembered
IN_DOUBT = 600  # seconds for which an answer is asked for that may have been yes
UNNOTICED = 30  # seconds that a connection may be dead before anyone notices
STOP_GRACE = 5  # seconds between SIGTERM and SIGKILL
OPEN_MAX = 1024  # attempts that run, wait for a slot or are not reported yet; more offers are left to others
LINE_BYTES_MAX = 4096
MESSAGE_CHARS_MAX = 1024
LINES_BURST, LINES_PER_SECOND = 1000, 200  # of one attempt; what is over is dropped and counted
ENVIRONMENT = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "SHELL")  # ours may hold the password of the bus

log = logging.getLogger("runtime")


def now():
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Attempt:
    """One attempt of one phase; self.ended is what was reported last, once it is over."""

    def __init__(self, session, phase_id, token, spec):
        self.session, self.phase_id, self.token, self.spec = session, phase_id, token, spec
        self.granted, self.cancelled = False, asyncio.Event()
        self.ended, self.said_at, self.kept = None, None, False
        self.lines_left, self.lines_at, self.lines_dropped = LINES_BURST, time.monotonic(), 0

    def names(self):
        """Variables by which the command may know what it runs for."""
        return {"PMP_SESSION_ID": self.session, "PMP_PHASE_ID": self.phase_id, "PMP_ATTEMPT": self.token}

    def may_log(self):
        """False for a line that is too much: one loud command must not starve the bus."""
        now = time.monotonic()
        self.lines_left = min(LINES_BURST, self.lines_left + (now - self.lines_at) * LINES_PER_SECOND)
        self.lines_at = now
        if self.lines_left < 1:
            self.lines_dropped += 1
            return False
        self.lines_left -= 1
        return True


class Runtime:
    def __init__(self, options):
        self.options = options
        self.labels = dict(label.split("=", 1) for label in options.label)
        self.nc, self.attempts, self.tasks, self.processes = None, {}, set(), set()
        self.draining, self.stopping = False, False
        self.slots = asyncio.Semaphore(options.concurrency)
        self.keeps_reports, self.look_at = False, 0  # whether a stream keeps them, and when to look (again)
        self.lost_at = None

    async def serve(self, stop):
        options, stopped = self.options, asyncio.create_task(stop.wait())
        connecting = asyncio.create_task(nats.connect(
            options.nats, name=options.name, user_credentials=options.creds, inbox_prefix="_INBOX_pmp-runtime",
            ping_interval=5, max_outstanding_pings=2, max_reconnect_attempts=-1, reconnect_time_wait=0.5,
            pending_size=0,  # what cannot be sent now is refused, and not sent late
            disconnected_cb=self.on_disconnected, reconnected_cb=self.on_reconnected, error_cb=self.on_error))
        await asyncio.wait({connecting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not connecting.done():
            connecting.cancel()
            return 0  # NATS never was there, so nothing was begun
        self.nc = await connecting
        # Runtimes of one label set that can do the same share the offers; commands are for everyone.
        labels = ",".join(f"{k}={v}" for k, v in sorted(self.labels.items())) or "none"
        group = f"{'exec' if options.allow_exec else 'exec-none'};{labels}"
        session = options.session or "*"
        await self.nc.subscribe(f"{options.prefix}.{session}.control", cb=self.on_control)
        targets = await self.nc.subscribe(f"{options.prefix}.{session}.target", queue=group, cb=self.on_target)
        await self.nc.flush()
        log.info("%s waits for phases as %s", options.name, group)
        await stopped
        log.info("draining: %d attempts are open", len(self.tasks))
        self.draining = True
        try:
            await targets.unsubscribe()  # its offers go to the others of its group
        except nats.errors.Error:
            pass  # not connected: nothing is offered either
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=options.drain)
        self.stopping = True
        for attempt in self.attempts.values():
            attempt.cancelled.set()
        until = time.monotonic() + 3 * STOP_GRACE
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=3 * STOP_GRACE)
        unsaid = len(self.tasks) + await self.farewell(max(until, time.monotonic() + 2))
        if unsaid:
            log.error("%d ends could not be reported; the operator notices the silence", unsaid)
        return 1 if unsaid else 0

    async def farewell(self, until):
        """How many ends may have been said into a dead connection. A pong proves that the server has what came before."""
        since = time.monotonic() - UNNOTICED
        doubtful = [a for a in self.attempts.values() if a.ended and not a.kept and (a.said_at or 0) >= since]
        while True:
            try:
                if self.nc.is_connected:  # else its flush proves nothing
                    await self.nc.flush(2)
                    return 0
            except (nats.errors.Error, asyncio.TimeoutError) as error:
                log.warning("whether the last reports arrived is not known: %r", error)
            if not doubtful or time.monotonic() >= until:
                return len(doubtful)
            await asyncio.sleep(0.2)
            for attempt in doubtful:
                await self.report(attempt)

    def kill(self):
        """What runs, with its children."""
        for process in self.processes:
            self.signal(process, signal.SIGKILL)

    # The connection

    async def on_disconnected(self):
        log.warning("the connection to NATS is lost; what runs goes on")
        self.lost_at = self.lost_at or time.monotonic()

    async def on_reconnected(self):
        log.info("connected again")
        since, self.lost_at, self.look_at = (self.lost_at or time.monotonic()) - UNNOTICED, None, 0
        for attempt in list(self.attempts.values()):  # a dead connection takes messages for a while
            if not attempt.ended or (attempt.said_at and attempt.said_at >= since and not attempt.kept):
                await self.report(attempt)

    async def on_error(self, error):
        log.warning("NATS: %s", error)

    # What the operator says

    async def on_target(self, message):
        try:
            body = json.loads(message.data)
            spec = body["x-phase"]["spec"]
            selector = (spec.get("selector") or {}).get("matchLabels") or {}
            attempt = Attempt(message.subject.split(".")[-2], body["phaseId"], body["x-attempt"], spec)
            not_after = body.get("x-notAfter")
            not_after = not_after and datetime.fromisoformat(not_after.replace("Z", "+00:00"))
            is_ours = all(self.labels.get(k) == v for k, v in selector.items())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return log.warning("a target that cannot be read: %r", error)
        if self.draining or not is_ours:
            return None  # somebody else's
        known = self.attempts.get((attempt.session, attempt.token))
        if known:
            return await self.report(known)
        if not_after and not_after < datetime.now(timezone.utc):
            return await self.decline(attempt, **{"x-reason": "Expired", "x-now": now()})
        if spec.get("x-exec") is None:
            return await self.decline(attempt, **{"x-reason": "NoExec"})
        if not self.options.allow_exec:
            return await self.decline(attempt, **{"x-reason": "NotAllowed"})
        if len(self.tasks) >= OPEN_MAX:
            return None  # it comes again, and another may hear it
        self.forget_old()
        self.attempts[attempt.session, attempt.token] = attempt
        task = asyncio.create_task(self.attend(attempt, not_after))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def on_control(self, message):
        try:
            body, session = json.loads(message.data), message.subject.split(".")[-2]
            command, phase_id, token = body["command"], body.get("x-phaseId"), body.get("x-attempt")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return log.warning("a command that cannot be read: %r", error)
        if body.get("x-runtime") not in (None, self.options.name):
            return None
        for attempt in list(self.attempts.values()):
            if attempt.session != session or phase_id not in (None, attempt.phase_id):
                continue
            if token not in (None, attempt.token):
                continue
            if command in ("cancel", "x-cancel") and not attempt.ended:
                attempt.cancelled.set()
            elif command == "x-report":
                await self.report(attempt)

    # What we say

    def about(self, attempt, **more):
        return {"phaseId": attempt.phase_id, "x-attempt": attempt.token, "x-runtime": self.options.name, **more}

    async def decline(self, attempt, **why):
        await self.publish(attempt, "ack", self.about(attempt, accepted=False, queued=False, **why))

    async def report(self, attempt):
        """Once. What is lost is said again at the next heartbeat, x-report or reconnect."""
        if attempt.granted:
            await self.publish(attempt, "state", self.state(attempt))

    def state(self, attempt):
        body = attempt.ended or {"status": "running"}
        return self.about(attempt, **body, updated=now(), **{"x-heartbeat": f"{self.options.heartbeat}s"})

    async def publish(self, attempt, channel, body):
        """True if a connection that was up took it."""
        try:
            await self.nc.publish(f"{self.options.prefix}.{attempt.session}.{channel}", json.dumps(body).encode())
            return True
        except nats.errors.Error as error:
            log.warning("%s: .%s was not taken: %r", attempt.phase_id, channel, error)
            return False

    async def conclude(self, attempt):
        """Says how it ended until somebody has it: a stream that confirms it, else a live connection."""
        pause, tries = 0.2, 0
        while True:
            # A stream that did not answer twice may be gone: whoever is subscribed hears it plainly.
            attempt.kept = await self.store(attempt) if tries < 2 else None
            tries += attempt.kept is False
            if attempt.kept or (attempt.kept is None and await self.publish(attempt, "state", self.state(attempt))):
                attempt.said_at = time.monotonic()
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, 5)

    async def store(self, attempt):
        """True if a stream has it, None if no stream takes it, False if that is not known."""
        subject, stream = f"{self.options.prefix}.{attempt.session}.state", self.nc.jetstream(timeout=2)
        try:
            if time.monotonic() >= self.look_at:  # once a connection, and once a minute while there is none
                self.keeps_reports, self.look_at = False, time.monotonic() + 60
                await stream.find_stream_name_by_subject(subject)
                self.keeps_reports, self.look_at = True, float("inf")
        except (nats.errors.Error, nats.js.errors.Error, asyncio.TimeoutError) as error:
            log.debug("no stream is known to keep reports: %r", error)
        if not self.keeps_reports:
            return None
        try:
            await stream.publish(subject, json.dumps(self.state(attempt)).encode())
            return True
        except asyncio.TimeoutError as error:
            log.warning("%s: its end is not confirmed: %r", attempt.phase_id, error)
            self.look_at = 0  # is there still a stream?
            return False
        except (nats.errors.Error, nats.js.errors.Error) as error:  # full, gone, denied: who is subscribed hears it plainly
            log.warning("%s: no stream took its end: %r", attempt.phase_id, error)
            self.keeps_reports, self.look_at = False, time.monotonic() + 60
            return None

    # The work

    async def attend(self, attempt, not_after):
        """Asks for the attempt, runs it, reports it."""
        async with self.slots:  # when all are busy, the offer waits here, unanswered: another runtime may take it
            if not await self.ask(attempt, not_after):
                del self.attempts[attempt.session, attempt.token]
                return
            attempt.granted = True
            log.info("%s: running", attempt.phase_id)
            await self.report(attempt)
            heart = asyncio.create_task(self.beat(attempt))
            try:
                ended = await self.run(attempt)
            except Exception as error:  # whatever happens, the operator hears of it
                log.exception("%s: cannot be run", attempt.phase_id)
                ended = {"status": "failed", "message": f"cannot be run: {error}"}
            heart.cancel()
        if "message" in ended:
            ended["message"] = ended["message"][:MESSAGE_CHARS_MAX]
        attempt.ended = ended
        log.info("%s: %s %s", attempt.phase_id, ended["status"], ended.get("message", ""))
        await self.conclude(attempt)

    async def ask(self, attempt, not_after):
        """True once the operator has bound the attempt to us.

        A lost answer may have been yes, and then nobody else is ever offered the attempt: it is asked for again, by then
        also past the target's time, while no operator listens and while we drain.
        """
        subject = f"{self.options.prefix}.{attempt.session}.ack"
        body = self.about(attempt, accepted=True, queued=False, **{"x-heartbeat": f"{self.options.heartbeat}s"})
        doubt_until, pause = None, 0.2
        while True:
            if doubt_until is None:
                if self.draining or (not_after and not_after < datetime.now(timezone.utc)):
                    return False
            elif self.stopping or time.monotonic() > doubt_until:
                return False
            try:
                reply = await self.nc.request(subject, json.dumps(body).encode(), timeout=2)
                return json.loads(reply.data)["x-granted"] is True
            except nats.errors.OutboundBufferLimitError:
                pass  # not connected: it was not asked
            except nats.errors.NoRespondersError:
                if doubt_until is None:
                    return False  # no operator listens: this offer is from the past
            except (nats.errors.Error, asyncio.TimeoutError, ValueError, KeyError, TypeError) as error:
                log.warning("%s: no answer to the ack: %r", attempt.phase_id, error)
                doubt_until = doubt_until or time.monotonic() + IN_DOUBT
            await asyncio.sleep(pause)
            pause = min(2 * pause, 5)

    async def beat(self, attempt):
        while True:
            await asyncio.sleep(self.options.heartbeat)
            await self.report(attempt)

    async def run(self, attempt):
        exec_ = attempt.spec["x-exec"]
        if not isinstance(exec_, dict):  # nobody would make it right
            return {"status": "failed", "message": "x-exec is not an object", "x-retryable": False}
        command = exec_.get("command")
        if not isinstance(command, list) or not command:
            return {"status": "failed", "message": "x-exec.command is not an array of strings", "x-retryable": False}
        if attempt.cancelled.is_set():
            return {"status": "failed", "message": "cancelled"}
        env = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        env |= {k: v if isinstance(v, str) else json.dumps(v) for k, v in (exec_.get("env") or {}).items()}
        try:
            process = await asyncio.create_subprocess_exec(
                *map(str, command), env=env | attempt.names(), cwd=exec_.get("workingDir"), start_new_session=True,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
        except OSError as error:
            return {"status": "failed", "message": f"cannot start {command[0]}: {error}"}
        self.processes.add(process)
        output = asyncio.create_task(self.forward(attempt, process.stdout))
        ended = asyncio.create_task(process.wait())
        cancelled = asyncio.create_task(attempt.cancelled.wait())
        await asyncio.wait({ended, cancelled}, return_when=asyncio.FIRST_COMPLETED)
        was_cancelled = not ended.done()
        if was_cancelled:
            await self.stop(process, ended)
        cancelled.cancel()
        code = await ended
        await asyncio.wait({output}, timeout=1)  # something left behind may hold the output open for ever
        if code != 0 and not was_cancelled:
            await self.stop(process, ended)  # the next attempt must not meet the rest of this one
        self.processes.discard(process)
        output.cancel()
        if attempt.lines_dropped:
            await self.log_dropped(attempt)
        if was_cancelled:
            return {"status": "failed", "message": "the runtime was stopped" if self.stopping else "cancelled"}
        if code == 0:
            return {"status": "complete"}
        return {"status": "failed", "message": f"ended by signal {-code}" if code < 0 else f"exit status {code}"}

    async def stop(self, process, ended):
        """SIGTERM to the group, then SIGKILL: who outlives the command (a shell ends at once) has the grace too."""
        until = time.monotonic() + STOP_GRACE
        self.signal(process, signal.SIGTERM)
        await asyncio.wait({ended}, timeout=STOP_GRACE)
        while self.signal(process, 0) and time.monotonic() < until:
            await asyncio.sleep(0.02)
        self.signal(process, signal.SIGKILL)

    async def forward(self, attempt, output):
        """Every line of the command is a .log message; an endless one comes in pieces."""
        rest = b""
        while chunk := await output.read(LINE_BYTES_MAX):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LINE_BYTES_MAX:
                lines, rest = [*lines, rest], b""
            for line in lines:
                await self.log_line(attempt, line)
        if rest:
            await self.log_line(attempt, rest)

    async def log_line(self, attempt, line):
        if attempt.may_log():
            if attempt.lines_dropped:
                await self.log_dropped(attempt)
            await self.say_line(attempt, "info", line.decode(errors="replace").rstrip("\r"))

    async def log_dropped(self, attempt):
        count, attempt.lines_dropped = attempt.lines_dropped, 0
        text = f"{count} lines dropped: the phase writes more than {LINES_PER_SECOND} lines a second"
        await self.say_line(attempt, "warning", text)

    async def say_line(self, attempt, level, text):
        body = {"phaseId": attempt.phase_id, "level": level, "message": text, "timestamp": now()}
        await self.publish(attempt, "log", body)

    @staticmethod
    def signal(process, number):
        """False when the whole group has ended."""
        try:
            os.killpg(process.pid, number)
            return True
        except ProcessLookupError:
            return False

    def forget_old(self):
        limit = time.monotonic() - OUTCOMES_KEPT  # from when it was told: until then nobody else knows
        self.attempts = {k: a for k, a in self.attempts.items() if a.said_at is None or a.said_at > limit}


async def main():
    parser = argparse.ArgumentParser(description="A PMP runtime: runs the x-exec commands of phases offered on NATS.")
    parser.add_argument("--nats", default="nats://localhost:4222", metavar="URL")
    parser.add_argument("--creds", metavar="FILE", help="a .creds file to log in with")
    parser.add_argument("--prefix", default="plan.session", help="subject prefix of the connection")
    parser.add_argument("--session", help="serve this session only")
    parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="a label carried; repeatable")
    parser.add_argument("--name", default=f"{os.uname().nodename}-{secrets.token_hex(4)}",
                        help="x-runtime; no two processes may share one, one after the other neither")
    parser.add_argument("--concurrency", type=int, default=4, help="phases at a time")
    parser.add_argument("--heartbeat", type=int, default=10, help="seconds between two `running`; three missed are the end")
    parser.add_argument("--drain", type=float, default=20, help="seconds that running phases get after SIGTERM")
    parser.add_argument("--allow-exec", action="store_true",
                        help="run commands written in phases: whoever may publish a target may run anything here")
    options = parser.parse_args()
    if any("=" not in label for label in options.label):
        parser.error("a label is KEY=VALUE")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    runtime, stop = Runtime(options), asyncio.Event()

    def on_signal(number):
        if stop.is_set():
            runtime.kill()
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    return await runtime.serve(stop)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

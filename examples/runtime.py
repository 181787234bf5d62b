#!/usr/bin/env python3
"""A PMP runtime in one file: takes the phases that pmp-operator offers on NATS and runs their x-exec commands.

    pip install nats-py
    python runtime.py --nats nats://localhost:4222 --label site=lab --allow-exec

It keeps the rules of a good runtime:
  - it begins only after the operator has answered its ack with x-granted: true, so no phase ever runs twice;
  - it stays silent about phases whose labels it does not carry, and declines those that it cannot do;
  - offered an attempt that it holds or has finished, it says again what it knows;
  - it says `running` every ten seconds (--heartbeat), so that its silence can be told from long work;
  - it stops an attempt when .control says so, and answers .control x-report at once;
  - on SIGTERM it takes nothing new, lets what runs finish for --drain seconds, stops the rest, and reports it all.
"""

import argparse
import asyncio
import json
import logging
import os
import secrets
import signal
import time
from datetime import datetime, timezone

import nats

OUTCOMES_KEPT = 3600  # seconds that the end of an attempt is remembered
STOP_GRACE = 5  # seconds between SIGTERM and SIGKILL
LINE_BYTES_MAX = 4096

log = logging.getLogger("runtime")


def now():
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Attempt:
    """One attempt of one phase; self.ended is what was reported last, once it is over."""

    def __init__(self, session, phase_id, token, spec):
        self.session, self.phase_id, self.token, self.spec = session, phase_id, token, spec
        self.granted, self.process, self.cancelled = False, None, asyncio.Event()
        self.ended, self.ended_at = None, None


class Runtime:
    def __init__(self, options):
        self.options = options
        self.labels = dict(label.split("=", 1) for label in options.label)
        self.nc, self.attempts, self.tasks, self.draining = None, {}, set(), False
        self.slots = asyncio.Semaphore(options.concurrency)

    async def serve(self, stop):
        options = self.options
        self.nc = await nats.connect(options.nats, name=options.name, max_reconnect_attempts=-1, ping_interval=5)
        # Runtimes of one label set share the offers; commands are for everyone.
        group = "exec;" + (",".join(f"{k}={v}" for k, v in sorted(self.labels.items())) or "all")
        targets = await self.nc.subscribe(f"{options.prefix}.*.target", queue=group, cb=self.on_target)
        await self.nc.subscribe(f"{options.prefix}.*.control", cb=self.on_control)
        await self.nc.flush()
        log.info("%s waits for phases as %s", options.name, group)
        await stop.wait()
        log.info("draining: %d attempts are open", len(self.tasks))
        self.draining = True
        await targets.unsubscribe()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=options.drain)
        for attempt in self.attempts.values():
            attempt.cancelled.set()
        if self.tasks:
            await asyncio.wait(self.tasks)
        await self.nc.drain()  # sends what is still on its way

    # What the operator says

    async def on_target(self, message):
        try:
            body = json.loads(message.data)
            spec = body["x-phase"]["spec"]
            selector = (spec.get("selector") or {}).get("matchLabels") or {}
            attempt = Attempt(message.subject.split(".")[-2], body["phaseId"], body["x-attempt"], spec)
            not_after = body.get("x-notAfter")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return log.warning("a target that cannot be read: %r", error)
        if self.draining or any(self.labels.get(k) != v for k, v in selector.items()):
            return None  # somebody else's
        known = self.attempts.get((attempt.session, attempt.token))
        if known:
            return await self.report(known)
        if not_after and datetime.fromisoformat(not_after.replace("Z", "+00:00")) < datetime.now(timezone.utc):
            return await self.ack(attempt, accepted=False, **{"x-reason": "Expired", "x-now": now()})
        if not isinstance(spec.get("x-exec"), dict):
            return await self.ack(attempt, accepted=False, **{"x-reason": "NoExec"})
        if not self.options.allow_exec:
            return await self.ack(attempt, accepted=False, **{"x-reason": "NotAllowed"})
        self.forget_old()
        self.attempts[attempt.session, attempt.token] = attempt
        task = asyncio.create_task(self.attend(attempt))
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

    async def ack(self, attempt, accepted, **more):
        body = {"phaseId": attempt.phase_id, "accepted": accepted, "queued": False, "x-attempt": attempt.token,
                "x-runtime": self.options.name, **more}
        subject = f"{self.options.prefix}.{attempt.session}.ack"
        if not accepted:
            return await self.publish(subject, body)
        body["x-heartbeat"] = f"{self.options.heartbeat}s"
        reply = await self.nc.request(subject, json.dumps(body).encode(), timeout=2)
        return json.loads(reply.data).get("x-granted") is True

    async def report(self, attempt):
        if not attempt.granted:
            return
        body = attempt.ended or {"status": "running"}
        body = {"phaseId": attempt.phase_id, **body, "updated": now(), "x-attempt": attempt.token,
                "x-runtime": self.options.name, "x-heartbeat": f"{self.options.heartbeat}s"}
        await self.publish(f"{self.options.prefix}.{attempt.session}.state", body)

    async def publish(self, subject, body):
        try:
            await self.nc.publish(subject, json.dumps(body).encode())
        except nats.errors.Error as error:  # it is said again when the operator asks (x-report) or offers again
            log.warning("could not publish on %s: %s", subject, error)

    # The work

    async def attend(self, attempt):
        """Asks for the attempt, runs it, reports it."""
        key = attempt.session, attempt.token
        async with self.slots:  # when all are busy, the offer waits here, unanswered: another runtime may take it
            if not await self.ask(attempt):
                del self.attempts[key]
                return
            attempt.granted = True
            log.info("%s: running", attempt.phase_id)
            await self.report(attempt)
            heart = asyncio.create_task(self.beat(attempt))
            try:
                ended = await self.run(attempt)
            except Exception as error:  # whatever happens, the operator hears of it
                log.exception("%s: cannot be run", attempt.phase_id)
                ended = {"status": "failed", "message": f"cannot be run: {error}"[:256]}
            heart.cancel()
            attempt.ended, attempt.ended_at = ended, time.monotonic()
            log.info("%s: %s %s", attempt.phase_id, ended["status"], ended.get("message", ""))
            await self.report(attempt)

    async def ask(self, attempt):
        """True once the operator has bound the attempt to us. A lost answer is asked for again."""
        for _ in range(5):
            if self.draining or attempt.cancelled.is_set():
                return False
            try:
                return await self.ack(attempt, accepted=True)
            except nats.errors.NoRespondersError:
                return False  # no operator listens: this offer is from the past
            except (nats.errors.Error, ValueError, AttributeError) as error:
                log.warning("%s: no answer to the ack: %r", attempt.phase_id, error)
        return False

    async def beat(self, attempt):
        while True:
            await asyncio.sleep(self.options.heartbeat)
            await self.report(attempt)

    async def run(self, attempt):
        exec_ = attempt.spec["x-exec"]
        command = exec_.get("command")
        if not isinstance(command, list) or not command:
            return {"status": "failed", "message": "x-exec.command is not an array of strings", "x-retryable": False}
        env = {**os.environ, **{k: str(v) for k, v in (exec_.get("env") or {}).items()},
               "PMP_SESSION_ID": attempt.session, "PMP_PHASE_ID": attempt.phase_id, "PMP_ATTEMPT": attempt.token}
        try:
            process = await asyncio.create_subprocess_exec(
                *map(str, command), env=env, cwd=exec_.get("workingDir"), start_new_session=True,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
        except OSError as error:
            return {"status": "failed", "message": f"cannot start {command[0]}: {error.strerror}"}
        output = asyncio.create_task(self.forward(attempt, process.stdout))
        ended = asyncio.create_task(process.wait())
        cancelled = asyncio.create_task(attempt.cancelled.wait())
        await asyncio.wait({ended, cancelled}, return_when=asyncio.FIRST_COMPLETED)
        was_cancelled = not ended.done()
        if was_cancelled:
            self.signal(process, signal.SIGTERM)
            await asyncio.wait({ended}, timeout=STOP_GRACE)
            self.signal(process, signal.SIGKILL)  # also whoever outlived the command in its group
        cancelled.cancel()
        code = await ended
        await asyncio.wait({output}, timeout=1)  # something left behind may hold the output open for ever
        output.cancel()
        if was_cancelled:
            return {"status": "failed", "message": "cancelled"}
        if code == 0:
            return {"status": "complete"}
        return {"status": "failed", "message": f"ended by signal {-code}" if code < 0 else f"exit status {code}"}

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
        body = {"phaseId": attempt.phase_id, "level": "info", "message": line.decode(errors="replace").rstrip("\r"),
                "timestamp": now()}
        await self.publish(f"{self.options.prefix}.{attempt.session}.log", body)

    @staticmethod
    def signal(process, number):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass  # the whole group has ended

    def forget_old(self):
        limit = time.monotonic() - OUTCOMES_KEPT
        self.attempts = {k: a for k, a in self.attempts.items() if not a.ended or a.ended_at > limit}


async def main():
    parser = argparse.ArgumentParser(description="A PMP runtime: runs the x-exec commands of phases offered on NATS.")
    parser.add_argument("--nats", default="nats://localhost:4222", metavar="URL")
    parser.add_argument("--prefix", default="plan.session", help="subject prefix of the connection")
    parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="a label carried; repeatable")
    parser.add_argument("--name", default=f"{os.uname().nodename}-{secrets.token_hex(4)}",
                        help="x-runtime; no two processes may share one, one after the other neither")
    parser.add_argument("--concurrency", type=int, default=4, help="phases at a time")
    parser.add_argument("--heartbeat", type=int, default=10, help="seconds between two `running`; three missed are the end")
    parser.add_argument("--drain", type=float, default=30, help="seconds that running phases get after SIGTERM")
    parser.add_argument("--allow-exec", action="store_true",
                        help="run commands written in phases: whoever may publish a target may run anything here")
    options = parser.parse_args()
    if any("=" not in label for label in options.label):
        parser.error("a label is KEY=VALUE")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await Runtime(options).serve(stop)


if __name__ == "__main__":
    asyncio.run(main())

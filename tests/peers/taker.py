"""A peer that takes every offer, whatever its labels, and completes it at once.

    python taker.py --nats nats://localhost:4222 --prefix plan.session
"""

import argparse
import asyncio
import json
from datetime import datetime, timezone

import nats


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--nats", required=True)
    parser.add_argument("--prefix", required=True)
    options = parser.parse_args()
    client = await nats.connect(options.nats, max_reconnect_attempts=-1)
    asking = set()  # keeps the tasks alive; the event loop does not

    async def take(session, offer):
        mine = {"phaseId": offer["phaseId"], "x-attempt": offer["x-attempt"], "x-runtime": "taker"}
        ack = {**mine, "accepted": True, "queued": False}
        try:
            reply = await client.request(f"{session}.ack", json.dumps(ack).encode(), timeout=5)
        except nats.errors.Error:
            return  # it is offered again
        if json.loads(reply.data).get("x-granted") is not True:
            return
        for status in ("running", "complete"):
            updated = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
            await client.publish(f"{session}.state", json.dumps({**mine, "status": status, "updated": updated}).encode())

    async def on_target(message):
        task = asyncio.create_task(take(message.subject.removesuffix(".target"), json.loads(message.data)))
        asking.add(task)
        task.add_done_callback(asking.discard)

    await client.subscribe(f"{options.prefix}.*.target", cb=on_target)
    await client.flush()
    print("ready", flush=True)
    await asyncio.Event().wait()


asyncio.run(main())

"""A peer of the first days of PMP: it never acks; on .start it walks the array and says running and complete of each.

    python early_peer.py --nats nats://localhost:4222 --prefix plan.session
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

    async def on_start(message):
        subject = message.subject.removesuffix(".start") + ".state"
        for phase in json.loads(message.data)["manifest"]:
            for status in ("running", "complete"):
                updated = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
                report = {"phaseId": phase["id"], "status": status, "updated": updated}
                await client.publish(subject, json.dumps(report).encode())

    await client.subscribe(f"{options.prefix}.*.start", cb=on_start)
    await client.flush()
    print("ready", flush=True)
    await asyncio.Event().wait()


asyncio.run(main())

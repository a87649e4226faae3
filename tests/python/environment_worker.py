"""Serves sessions with the unmodified worker of the SDK `anthropic`; exits non-zero at the first difference.

    python environment_worker.py BASE_URL MANAGE_KEY ENVIRONMENT_ID ENVIRONMENT_KEY DIRECTORY PART...
    python environment_worker.py serve BASE_URL ENVIRONMENT_ID ENVIRONMENT_KEY DIRECTORY

The parts are `served`, `handed`, `lost` and `archived`. Plays scripts on the model `scripted`. The lease of the hub's work is to be five seconds. The second form serves until it is
stopped.
"""

import asyncio
import json
import os
import sys

import anthropic

BASH = {
    "type": "agent_toolset_20260401",
    "default_config": {"enabled": False},
    "configs": [{"name": "bash", "enabled": True, "permission_policy": {"type": "always_allow"}}],
}
SOON = 60


def check(truth, what):
    if not truth:
        sys.exit(f"environment_worker: {what}")


def plays(command, answer="it said {{result}}"):
    script = [{"tools": [{"name": "bash", "input": {"command": command}}]}, {"text": answer}]
    return {"type": "user.message", "content": [{"type": "text", "text": json.dumps({"script": script})}]}


class Stage:
    def __init__(self, base_url, manage, environment, key, directory):
        self.base_url, self.environment, self.key, self.directory = base_url, environment, key, directory
        self.operator = anthropic.AsyncAnthropic(api_key=manage, base_url=base_url, max_retries=0)
        # What a worker's host has: no API key.
        self.host = anthropic.AsyncAnthropic(auth_token="none", base_url=base_url)
        self.work = self.operator.beta.environments.work

    def worker(self, name, **more):
        directory = os.path.join(self.directory, name)
        os.makedirs(directory, exist_ok=True)
        return self.host.beta.environments.work.worker(
            environment_id=self.environment, environment_key=self.key, workdir=directory, max_idle=1, **more
        )

    async def session(self, *events):
        agent = await self.operator.beta.agents.create(name="a", model="scripted", tools=[BASH])
        made = await self.operator.beta.sessions.create(
            agent=agent.id, environment_id=self.environment, initial_events=list(events)
        )
        return made.id

    async def said(self, session):
        return [
            block.text
            async for event in self.operator.beta.sessions.events.list(session)
            if event.type == "agent.message"
            for block in event.content
        ]

    async def items(self, session):
        listed = [item async for item in self.work.list(self.environment)]
        return [item for item in listed if item.data.id == session]

    async def until(self, what, look):
        for _ in range(SOON * 10):
            found = await look()
            if found:
                return found
            await asyncio.sleep(0.1)
        check(False, f"{what} did not happen within {SOON} s")

    async def until_said(self, session, text):
        async def look():
            return text in " ".join(await self.said(session))

        await self.until(f"`{text}`", look)

    async def until_over(self, session, count):
        async def look():
            items = await self.items(session)
            return len(items) == count and all(item.state == "stopped" for item in items)

        await self.until(f"the end of {count} items of {session}", look)


async def served_to_the_end(stage):
    session = await stage.session(plays("echo made > file.txt; cat file.txt"))
    serving = asyncio.create_task(stage.worker("daemon").run())
    await stage.until_said(session, "it said made")
    await stage.until_over(session, 1)
    # The next message makes new work; the worker's directory is still there.
    await stage.operator.beta.sessions.events.send(session, events=[plays("cat file.txt; exit 3", "again {{result}}")])
    await stage.until_said(session, "again made")
    await stage.until_over(session, 2)
    stats = await stage.work.stats(stage.environment)
    check(stats.depth == 0 and stats.pending == 0, f"nothing waits: {stats}")
    check(stats.workers_polling == 1, f"one worker polls: {stats}")
    # An item that is stopped under its worker's hands does not stop the worker.
    session = await stage.session(plays("sleep 30; echo late"))
    item = await stage.until("an active item", lambda: active(stage, session))
    await stage.work.stop(item.id, environment_id=stage.environment)
    await stage.until_over(session, 1)
    check(serving.done() is False, "the worker goes on")
    await stage.operator.beta.sessions.events.send(session, events=[{"type": "user.interrupt"}])
    session = await stage.session(plays("echo alive"))
    await stage.until_said(session, "it said alive")
    serving.cancel()


async def active(stage, session):
    return next((item for item in await stage.items(session) if item.state == "active"), None)


def scoped(stage):
    return anthropic.AsyncAnthropic(auth_token=stage.key, base_url=stage.base_url, max_retries=0).beta.environments.work


async def handed_to_another_process(stage):
    """A poller that acknowledges, and a process for each item that has nothing but the item's secret."""
    session = await stage.session(plays("echo child; env | grep -c ANTHROPIC_ || true"))
    poller = stage.host.beta.environments.work.poller(
        environment_id=stage.environment, environment_key=stage.key, drain=True, block_ms=None, auto_stop=False
    )
    count = 0
    async for item in poller:
        count += 1
        check(item.data.id == session and item.secret, f"the item with its secret: {item.data}")
        child = "import asyncio, anthropic; client = anthropic.AsyncAnthropic(auth_token='none'); " \
            "asyncio.run(client.beta.environments.work.worker(max_idle=1).handle_item())"
        variables = {name: value for name, value in os.environ.items() if not name.startswith("ANTHROPIC_")}
        variables |= {
            "ANTHROPIC_BASE_URL": stage.base_url,
            "ANTHROPIC_WORK_ID": item.id,
            "ANTHROPIC_ENVIRONMENT_ID": item.environment_id,
            "ANTHROPIC_SESSION_ID": item.data.id,
            "ANTHROPIC_WORK_SECRET": item.secret,
        }
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", child, env=variables, cwd=stage.directory)
        check(await process.wait() == 0, "the process served its item")
    check(count == 1, f"one item: {count}")
    check("it said child" in " ".join(await stage.said(session)), "the session went on")
    await stage.until_over(session, 1)


async def lost_and_found(stage):
    """A worker that falls silent loses its item to another one."""
    session = await stage.session(plays("echo second"))
    work = scoped(stage)

    async def polled():
        return await work.poll(stage.environment, block_ms=999, anthropic_worker_id="silent")

    item = await stage.until("an item", polled)
    await work.ack(item.id, environment_id=stage.environment)
    beat = await work.heartbeat(item.id, environment_id=stage.environment, expected_last_heartbeat="NO_HEARTBEAT")
    check(beat.state == "active" and beat.lease_extended, f"a lease: {beat}")
    serving = asyncio.create_task(stage.worker("second").run())
    await stage.until_said(session, "it said second")
    try:
        await work.heartbeat(
            item.id, environment_id=stage.environment, expected_last_heartbeat=beat.last_heartbeat
        )
        check((await stage.items(session))[0].state == "stopped", "a lost lease is told")
    except anthropic.APIStatusError as error:
        check(error.status_code == 412, f"412 for a lost lease: {error}")
        code = error.body["error"]["details"]["error_code"]
        check(code == "heartbeat_precondition_failed", f"its code: {code}")
    await stage.until_over(session, 1)
    serving.cancel()


async def archived(stage):
    """A session that is archived takes its work with it."""
    session = await stage.session(plays("echo never"))

    async def waits():
        shown = await stage.operator.beta.sessions.retrieve(session)
        return shown.status == "idle" and await stage.items(session)

    await stage.until("a session that waits for a worker", waits)
    await stage.operator.beta.sessions.archive(session)
    await stage.until_over(session, 1)
    check(await scoped(stage).poll(stage.environment) is None, "nothing is left of it")


PARTS = {
    "served": served_to_the_end,
    "handed": handed_to_another_process,
    "lost": lost_and_found,
    "archived": archived,
}


async def main(base_url, manage, environment, key, directory, *parts):
    stage = Stage(base_url, manage, environment, key, directory)
    for part in parts:
        await PARTS[part](stage)
    print("all as expected")


async def serve(base_url, environment, key, directory):
    host = anthropic.AsyncAnthropic(auth_token="none", base_url=base_url)
    worker = host.beta.environments.work.worker(
        environment_id=environment, environment_key=key, workdir=directory, max_idle=1
    )
    print("serving", flush=True)
    await worker.run()


if sys.argv[1] == "serve":
    asyncio.run(serve(*sys.argv[2:]))
else:
    asyncio.run(main(*sys.argv[1:]))

"""Drives sessions, their events and streams with the unmodified SDK `anthropic`; exits non-zero at the first difference.

    python sessions_api.py BASE_URL MANAGE_KEY

Plays scripts on the model `scripted`. Leaves archived agents and environments behind.
"""

import json
import sys
import threading

import anthropic
from anthropic.lib.sessions import accumulate_managed_agents_event
from anthropic.types.beta.beta_environment_archived_error import BetaEnvironmentArchivedError
from anthropic.types.beta.beta_environment_not_found_error import BetaEnvironmentNotFoundError
from anthropic.types.beta.beta_invalid_metadata_error import BetaInvalidMetadataError

from tunnels_api import check, recent, refused, same

BASH = {
    "type": "agent_toolset_20260401",
    "default_config": {"enabled": False},
    "configs": [{"name": "bash", "enabled": True, "permission_policy": {"type": "always_ask"}}],
}
LOOKUP = {
    "type": "custom",
    "name": "lookup",
    "description": "Looks something up.",
    "input_schema": {"type": "object", "properties": {"key": {"type": "string"}}},
}


def says(text):
    return {"type": "user.message", "content": [{"type": "text", "text": text}]}


def plays(*steps):
    return says(json.dumps({"script": list(steps)}))


class Watch:
    """The events of a session since it was made, read in a thread of its own."""

    def __init__(self, client, session, **more):
        self.stream = client.beta.sessions.events.stream(session, **more)
        self.events = []
        self.grown = threading.Condition()
        self.ended = None
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        try:
            for event in self.stream:
                with self.grown:
                    self.events.append(event)
                    self.grown.notify_all()
            ended = "its end"
        except Exception as error:
            ended = repr(error)
        with self.grown:
            self.ended = ended
            self.grown.notify_all()

    def until(self, truth, what, after=0):
        """The first event after so many of which this is true, and how many there are then."""

        def found():
            return next((at for at, event in enumerate(self.events) if at >= after and truth(event)), None)

        with self.grown:
            there = self.grown.wait_for(lambda: found() is not None or self.ended, timeout=30)
            at = found()
            check(there and at is not None, f"{what} did not come ({self.ended}): {[e.type for e in self.events]}")
            return self.events[at], at + 1

    def idle(self, reason, after=0):
        return self.until(
            lambda event: event.type == "session.status_idle" and event.stop_reason.type == reason,
            f"session.status_idle with {reason}",
            after,
        )

    def end(self):
        with self.grown:
            check(self.grown.wait_for(lambda: self.ended, timeout=30), "the stream does not end")
            return self.ended


def check_create(client, agent, environment):
    made = client.beta.sessions.create(agent=agent.id, environment_id=environment.id)
    same((made.type, made.status, made.title), ("session", "idle", None), "a new session")
    same((made.agent.id, made.agent.version, made.agent.type), (agent.id, 1, "agent"), "its agent")
    same((made.environment_id, made.metadata, made.resources, made.vault_ids), (environment.id, {}, [], []), "the rest")
    same((made.usage.input_tokens, made.outcome_evaluations, made.archived_at), (0, [], None), "nothing is used")
    recent(made.created_at, "created_at")
    same(client.beta.sessions.retrieve(made.id).to_dict(), made.to_dict(), "it is retrieved as it was made")
    same([event for event in client.beta.sessions.events.list(made.id)], [], "nothing happened")

    pinned = client.beta.sessions.create(
        agent={"type": "agent", "id": agent.id, "version": 1},
        environment_id=environment.id,
        title="pinned",
        metadata={"team": "a"},
    )
    same((pinned.title, pinned.metadata, pinned.agent.version), ("pinned", {"team": "a"}, 1), "the second form")
    changed = client.beta.sessions.create(
        agent={"type": "agent_with_overrides", "id": agent.id, "system": "Be brief.", "tools": []},
        environment_id=environment.id,
    )
    same((changed.agent.system, changed.agent.tools, changed.agent.name), ("Be brief.", [], agent.name), "the third")

    bad = anthropic.BadRequestError
    create = client.beta.sessions.create
    refused(
        anthropic.NotFoundError, 404, "an unknown agent", lambda: create(agent="agent_1", environment_id=environment.id)
    )
    missing = lambda: create(agent=agent.id, environment_id="env_1")
    refused(BetaEnvironmentNotFoundError, 404, "no such environment", missing)
    for what, more in [
        ("a file", {"resources": [{"type": "file", "file_id": "file_1"}]}),
        ("a budget", {"budget": {"limit": {"amount": "100", "currency": "USD"}}}),
        ("an outcome", {"initial_events": [{"type": "user.define_outcome", "description": "x", "rubric": {}}]}),
        ("51 events", {"initial_events": [says("x")] * 51}),
        ("an empty text", {"initial_events": [says("")]}),
        ("a long title", {"title": "x" * 513}),
    ]:
        refused(bad, 400, what, lambda more=more: create(agent=agent.id, environment_id=environment.id, **more))
    cloud = client.beta.environments.create(name="cloud", config={"type": "cloud"})
    refused(bad, 400, "a cloud environment", lambda: create(agent=agent.id, environment_id=cloud.id))
    client.beta.environments.archive(cloud.id)
    gone = client.beta.environments.create(name="gone", config={"type": "self_hosted"})
    client.beta.environments.archive(gone.id)
    archived = lambda: create(agent=agent.id, environment_id=gone.id)
    refused(BetaEnvironmentArchivedError, 400, "an archived one", archived)


def check_turn(client, agent, environment):
    events = client.beta.sessions.events
    session = client.beta.sessions.create(agent=agent.id, environment_id=environment.id).id
    watch = Watch(client, session, event_deltas=["agent.message", "agent.thinking"])
    sent = events.send(session, events=[plays({"thinking": "Hm.", "text": ["Good ", "morning."]})])
    same(len(sent.data), 1, "one echo")
    same((sent.data[0].type, sent.data[0].processed_at), ("user.message", None), "it waits")
    watch.idle("end_turn")

    previews = [event for event in watch.events if event.type in ("event_start", "event_delta")]
    stored = [event for event in watch.events if event not in previews]
    same(stored[0].id, sent.data[0].id, "the echo is on the stream")
    order = []
    for event in stored[1:]:
        check(event.processed_at is not None, f"{event.type} has a time")
        order.append(event.type)
    same(
        order,
        [
            "session.status_running",
            "session.thread_status_running",
            "user.message",
            "span.model_request_start",
            "agent.thinking",
            "agent.message",
            "span.model_request_end",
            "session.thread_status_idle",
            "session.usage",
            "session.status_idle",
        ],
        "the order of a turn",
    )
    listed = list(events.list(session))
    same([event.to_dict() for event in listed], [event.to_dict() for event in stored[1:]], "the list is the stream")
    times = [event.processed_at for event in listed]
    same(times, sorted(set(times)), "times grow")
    back = list(events.list(session, order="desc"))
    same([event.id for event in back], [event.id for event in reversed(listed)], "the other order")
    few = list(events.list(session, limit=3))
    same([event.id for event in few], [event.id for event in listed], "page by page")
    kinds = list(events.list(session, types=["agent.message", "session.status_idle"]))
    same([event.type for event in kinds], ["agent.message", "session.status_idle"], "types")
    later = list(events.list(session, created_at_gt=listed[4].processed_at))
    same([event.id for event in later], [event.id for event in listed[5:]], "created_at[gt]")
    between = list(events.list(session, created_at_gte=listed[1].processed_at, created_at_lt=listed[3].processed_at))
    same([event.id for event in between], [event.id for event in listed[1:3]], "created_at[gte], created_at[lt]")

    snapshot, seen = None, []
    for event in watch.events:
        snapshot = accumulate_managed_agents_event(snapshot, event)
        if event.type == "event_delta":
            seen.append(snapshot.content[0].text)
    check(len(seen) >= 2 and seen[-1] == "Good morning.", f"previews: {seen}")
    same((snapshot.content[0].text, snapshot.processed_at is not None), ("Good morning.", True), "the whole")
    check(any(event.type == "event_start" and event.event.type == "agent.thinking" for event in previews), "thinking")

    usage = client.beta.sessions.retrieve(session).usage
    check(usage.input_tokens > 0 and usage.output_tokens > 0, f"usage: {usage}")
    begun = client.beta.sessions.create(
        agent=agent.id, environment_id=environment.id, initial_events=[plays({"text": "At once."})]
    )
    same(begun.status, "running", "it works at once")
    check_threads(client, begun.id)
    return session


def check_threads(client, session):
    threads = list(client.beta.sessions.threads.list(session))
    same(len(threads), 1, "one thread")
    thread = threads[0]
    same((thread.type, thread.session_id, thread.parent_thread_id), ("session_thread", session, None), "the primary one")
    found = client.beta.sessions.threads.retrieve(thread.id, session_id=session)
    same((found.id, found.agent.type), (thread.id, "agent"), "it is retrieved")
    of_session = [event.id for event in client.beta.sessions.events.list(session)]
    of_thread = [event.id for event in client.beta.sessions.threads.events.list(thread.id, session_id=session)]
    check(of_thread[: len(of_session)] == of_session, "its events are the session's")
    archive = client.beta.sessions.threads.archive
    refused(anthropic.BadRequestError, 400, "archive", lambda: archive(thread.id, session_id=session))
    retrieve = client.beta.sessions.threads.retrieve
    refused(anthropic.NotFoundError, 404, "another thread", lambda: retrieve("sthr_1", session_id=session))


def check_tools(client, agent, environment):
    events = client.beta.sessions.events
    session = client.beta.sessions.create(agent=agent.id, environment_id=environment.id).id
    watch = Watch(client, session)
    tools = [{"name": "lookup", "input": {"key": "a"}}, {"name": "bash", "input": {"command": "ls"}}]
    events.send(session, events=[plays({"tools": tools}, {"text": "Found {{result.0}} and {{result.1}}."})])
    idle, at = watch.idle("requires_action")
    lookup, _ = watch.until(lambda event: event.type == "agent.custom_tool_use", "agent.custom_tool_use")
    bash, _ = watch.until(lambda event: event.type == "agent.tool_use", "agent.tool_use")
    same(sorted(idle.stop_reason.event_ids), sorted([lookup.id, bash.id]), "both block")
    same((lookup.name, lookup.input), ("lookup", {"key": "a"}), "the custom tool")
    same((bash.evaluated_permission, bash.evaluation.type), ("ask", "always_ask"), "bash asks")

    def result(text):
        content = [{"type": "text", "text": text}]
        return {"type": "user.custom_tool_result", "custom_tool_use_id": lookup.id, "content": content}

    first = events.send(session, events=[result("one")]).data[0]
    check(first.processed_at is not None, "a result is processed on receipt")
    idle, at = watch.idle("requires_action", at)
    same(idle.stop_reason.event_ids, [bash.id], "the rest blocks")
    again = events.send(session, events=[result("one")]).data[0]
    same(again.to_dict(), first.to_dict(), "the same answer is the first one's echo")
    error = refused(
        anthropic.ConflictError, 409, "another answer", lambda: events.send(session, events=[result("two")])
    )
    same(error.response.headers.get("x-should-retry"), "false", "it is not tried again")
    unknown = {"type": "user.tool_result", "tool_use_id": "sevt_1", "content": []}
    refused(anthropic.BadRequestError, 400, "an unknown use", lambda: events.send(session, events=[unknown]))

    deny = {"type": "user.tool_confirmation", "tool_use_id": bash.id, "result": "deny", "deny_message": "Not today."}
    events.send(session, events=[deny])
    watch.idle("end_turn", at)
    said, _ = watch.until(lambda event: event.type == "agent.message", "agent.message")
    check("one" in said.content[0].text and "Not today." in said.content[0].text, f"told: {said.content[0].text}")
    same(len([event for event in watch.events if event.id == first.id]), 1, "one answer is on the stream")

    at = len(watch.events)
    events.send(session, events=[plays({"tools": [tools[1]]}, {"text": "It said {{result}}."})])
    idle, at = watch.idle("requires_action", at)
    bash = idle.stop_reason.event_ids[0]
    events.send(session, events=[{"type": "user.tool_confirmation", "tool_use_id": bash, "result": "allow"}])
    answer = {"type": "user.tool_result", "tool_use_id": bash, "content": [{"type": "text", "text": "a.txt"}]}
    events.send(session, events=[answer])
    watch.idle("end_turn", at)
    said, _ = watch.until(lambda event: event.type == "agent.message", "agent.message", at)
    same(said.content[0].text, "It said a.txt.", "the tool's answer arrives")


def check_interrupt(client, agent, environment):
    events = client.beta.sessions.events
    session = client.beta.sessions.create(agent=agent.id, environment_id=environment.id).id
    watch = Watch(client, session)
    events.send(session, events=[plays({"text": "Well", "hang": True})])
    watch.until(lambda event: event.type == "span.model_request_start", "span.model_request_start")
    same(client.beta.sessions.retrieve(session).status, "running", "it works")
    for what, call in [
        ("archive", client.beta.sessions.archive),
        ("delete", client.beta.sessions.delete),
    ]:
        refused(anthropic.BadRequestError, 400, f"{what} while it works", lambda call=call: call(session))
    update = client.beta.sessions.update
    refused(anthropic.BadRequestError, 400, "new tools while it works", lambda: update(session, agent={"tools": []}))
    same(update(session, title="Named").title, "Named", "a title may change")
    sent = events.send(session, events=[{"type": "user.interrupt"}]).data[0]
    watch.idle("end_turn")
    seen = [event for event in watch.events if event.id == sent.id]
    check(seen and seen[-1].processed_at is not None, "the interrupt took effect")
    same(client.beta.sessions.retrieve(session).status, "idle", "the status is that of the stream")


def check_end(client, agent, environment):
    sessions, events = client.beta.sessions, client.beta.sessions.events
    session = sessions.create(agent=agent.id, environment_id=environment.id, metadata={"a": "1", "b": "2"}).id
    watch = Watch(client, session)
    same(sessions.update(session, metadata={"a": None, "c": "3"}).metadata, {"b": "2", "c": "3"}, "a patch")
    updated = sessions.update(session, agent={"tools": [LOOKUP]})
    same([tool.type for tool in updated.agent.tools], ["custom"], "new tools")
    event, _ = watch.until(lambda event: event.type == "session.updated" and event.agent, "session.updated")
    same(event.agent.tools[0].name, "lookup", "the event has the agent")
    for what, more in [
        ("a budget", {"budget": None}),
        ("an unknown server", {"agent": {"tools": [{"type": "mcp_toolset", "mcp_server_name": "x"}]}}),
    ]:
        refused(anthropic.BadRequestError, 400, what, lambda more=more: sessions.update(session, **more))
    pairs = {str(n): "x" for n in range(17)}
    refused(BetaInvalidMetadataError, 400, "too many pairs", lambda: sessions.update(session, metadata=pairs))
    same(list(sessions.resources.list(session)), [], "no resources")
    add = sessions.resources.add
    refused(anthropic.BadRequestError, 400, "a file", lambda: add(session, type="file", file_id="file_1"))

    archived = sessions.archive(session)
    check(archived.archived_at is not None and archived.status == "terminated", f"archived: {archived}")
    same(watch.end(), "its end", "the stream ends")
    same(watch.events[-1].type, "session.status_terminated", "with the last event")
    same(list(events.stream(session)), [], "nothing more is streamed")
    refused(anthropic.BadRequestError, 400, "no more events", lambda: events.send(session, events=[says("Hi.")]))
    check(session not in [listed.id for listed in sessions.list()], "archived ones are not listed")
    check(session in [listed.id for listed in sessions.list(include_archived=True)], "unless asked for")
    same(sessions.delete(session).to_dict(), {"id": session, "type": "session_deleted"}, "what is left")
    refused(anthropic.NotFoundError, 404, "it is gone", lambda: sessions.retrieve(session))
    refused(anthropic.NotFoundError, 404, "so are its events", lambda: list(events.list(session)))
    refused(anthropic.NotFoundError, 404, "and its stream", lambda: list(events.stream(session)))

    session = sessions.create(agent=agent.id, environment_id=environment.id).id
    watch = Watch(client, session)
    sessions.delete(session)
    same((watch.end(), watch.events[-1].type), ("its end", "session.deleted"), "watchers are told")
    refused(
        anthropic.BadRequestError,
        400,
        "unknown previews",
        lambda: events.stream(session, event_deltas=["agent.tool_use"]),
    )


def check_lists(client, agent, environment):
    sessions = client.beta.sessions
    mine = [sessions.create(agent=agent.id, environment_id=environment.id).id for _ in range(5)]
    all = [session.id for session in sessions.list(agent_id=agent.id, limit=3)]
    same(all[:5], list(reversed(mine)), "newest first, page by page")
    first = sessions.list(agent_id=agent.id, limit=2)
    second = first.get_next_page()
    page = sessions.list(agent_id=agent.id, limit=2, page=second.prev_page)
    same([session.id for session in page.data], [session.id for session in first.data], "and back")
    same((first.prev_page, page.prev_page), (None, None), "nothing is before the first page")
    forward = [session.id for session in sessions.list(agent_id=agent.id, order="asc")]
    same(forward, list(reversed(all)), "the other order")
    bad = anthropic.BadRequestError
    refused(bad, 400, "another order's cursor", lambda: sessions.list(order="asc", page=first.next_page))
    refused(bad, 400, "an altered cursor", lambda: sessions.list(page=first.next_page + "A"))
    refused(bad, 400, "a version without an agent", lambda: sessions.list(agent_version=1))
    refused(bad, 400, "an unknown status", lambda: sessions.list(statuses=["dead"]))
    refused(bad, 400, "no limit", lambda: sessions.list(limit=0))
    refused(
        bad,
        400,
        "a cursor outside of the times",
        lambda: sessions.list(page=first.next_page, created_at_gt="2090-01-01T00:00:00Z"),
    )
    same(list(sessions.list(created_at_gt="2090-01-01T00:00:00Z")), [], "times")
    same(len(list(sessions.list(agent_id=agent.id, agent_version=1))), len(all), "the version")
    same(list(sessions.list(agent_id=agent.id, agent_version=2)), [], "another version")
    same(list(sessions.list(agent_id=agent.id, statuses=["terminated"])), [], "statuses")
    two = sessions.list(agent_id=agent.id, statuses=["idle", "running"])
    same([session.id for session in two], all, "two statuses")
    same(list(sessions.list(deployment_id="depl_1")), [], "no session is of a deployment")


def main():
    base_url, key = sys.argv[1:]
    client = anthropic.Anthropic(base_url=base_url, api_key=key, max_retries=0)
    agent = client.beta.agents.create(name="player", model="scripted", tools=[BASH, LOOKUP])
    environment = client.beta.environments.create(name="here", config={"type": "self_hosted"})
    for part in [check_create, check_turn, check_tools, check_interrupt, check_end]:
        part(client, agent, environment)
        print(part.__name__)
    check_lists(client, client.beta.agents.create(name="other", model="scripted"), environment)
    print("all as expected")


main()

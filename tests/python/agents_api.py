"""Drives agents, environments, vaults and credentials with the unmodified SDK `anthropic`; exits non-zero at the first
difference.

    python agents_api.py BASE_URL MANAGE_KEY

Needs a workspace that has none of them.
"""

import sys
from datetime import datetime, timedelta, timezone

import anthropic
from anthropic.types import beta

CANARY = "canary-secret"


def check(truth, what):
    if not truth:
        sys.exit(f"agents_api: {what}")


def same(found, expected, what):
    check(found == expected, f"{what}: expected {expected!r}, found {found!r}")


def refused(kind, status, said, call, code=None):
    """Calls something that has to raise this SDK exception with these words; returns it."""
    try:
        result = call()
    except kind as error:
        same(type(error), kind, said)
        same(error.status_code, status, said)
        message = error.body["error"]["message"]
        check(said in message, f"expected {said!r} in {message!r}")
        check(CANARY not in str(error.body), f"{said}: a secret in an error")
        if code is not None:
            same(error.body["error"]["details"]["error_code"], code, said)
        return error
    except anthropic.AnthropicError as error:
        sys.exit(f"agents_api: {said}: expected {kind.__name__}, found {type(error).__name__}: {error}")
    sys.exit(f"agents_api: {said}: expected {kind.__name__}, found {result!r}")


def plain(model):
    return model.model_dump(mode="json")


BAD, CONFLICT, MISSING = anthropic.BadRequestError, anthropic.ConflictError, anthropic.NotFoundError
ALLOW, ASK = {"type": "always_allow"}, {"type": "always_ask"}


def check_agents(agents):
    first = agents.create(name="first", model="scripted")
    same(first.type, "agent", "type")
    same(first.version, 1, "version")
    same(plain(first.model), {"id": "scripted", "effort": {"type": "high"}, "inference_geo": None, "speed": "standard"}, "model")
    same((first.tools, first.mcp_servers, first.skills, first.metadata), ([], [], [], {}), "lists")
    same((first.description, first.system, first.multiagent, first.archived_at), (None, None, None, None), "nothing")
    same(first.execution_identity.type, "service_account", "execution identity")
    check(isinstance(first.created_at, datetime) and first.created_at == first.updated_at, "times")
    same(agents.retrieve(first.id), first, "read again")

    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    full = agents.create(
        name="full",
        model={"id": "scripted", "effort": "low", "speed": "fast"},
        description="All of it.",
        system="Be brief.",
        tools=[
            {
                "type": "agent_toolset_20260401",
                "default_config": {"permission_policy": ASK},
                "configs": [{"name": "read", "permission_policy": ALLOW}, {"name": "bash", "enabled": False}],
            },
            {"type": "mcp_toolset", "mcp_server_name": "files", "configs": [{"name": "read_file", "enabled": False}]},
            {"type": "custom", "name": "weather", "description": "Tells the weather.", "input_schema": schema},
        ],
        mcp_servers=[{"type": "url", "name": "files", "url": "https://files.x.sortie.localhost/mcp"}],
        skills=[{"type": "custom", "skill_id": "skill_1"}],
        metadata={"team": "a"},
        execution_identity={"type": "aws_role", "role_arn": "arn:aws:iam::123456789012:role/runner"},
    )
    toolset, mcp, custom = full.tools
    same(plain(toolset.default_config), {"enabled": True, "permission_policy": ASK}, "default of the toolset")
    same(
        [plain(config) for config in toolset.configs],
        [
            {"name": "read", "type": "read", "enabled": True, "permission_policy": ALLOW},
            {"name": "bash", "type": "bash", "enabled": False, "permission_policy": ASK},
        ],
        "configs of the toolset",
    )
    same(plain(mcp.default_config), {"enabled": True, "permission_policy": ASK}, "MCP servers' tools ask first")
    same([plain(config) for config in mcp.configs], [{"name": "read_file", "enabled": False, "permission_policy": ASK}], "mcp")
    same(custom.input_schema.model_dump(mode="json", exclude_none=True), schema, "schema")
    same(plain(full.skills[0]), {"type": "custom", "skill_id": "skill_1", "version": "latest"}, "skill")
    same(full.execution_identity.role_arn, "arn:aws:iam::123456789012:role/runner", "role")
    same(full.model.effort.type, "low", "effort")

    # What is left out stays, null clears, metadata is patched, and what changes nothing makes no version.
    same(agents.update(full.id, version=1), full, "nothing changed")
    second = agents.update(full.id, version=1, description=None, system="", metadata={"team": None, "b": "2"})
    same((second.version, second.description, second.system, second.metadata), (2, None, None, {"b": "2"}), "cleared")
    same((second.tools, second.skills, second.model), (full.tools, full.skills, full.model), "kept")
    third = agents.update(full.id, model="scripted", tools=None, mcp_servers=[], skills=None)
    same((third.version, third.tools, third.mcp_servers, third.skills), (3, [], [], []), "lists are cleared")
    same((third.model.effort.type, third.model.speed), ("low", "standard"), "the effort of the same model stays")
    stale = refused(CONFLICT, 409, "version 3", lambda: agents.update(full.id, version=2, name="late"))
    same(stale.response.headers.get("x-should-retry"), "false", "the same request will not succeed later")
    refused(CONFLICT, 409, "version 3", lambda: agents.update(full.id, version=1))

    same(agents.retrieve(full.id, version=1), full, "the first version")
    same([agent.version for agent in agents.versions.list(full.id)], [3, 2, 1], "versions, newest first")
    same([agent.version for agent in agents.versions.list(full.id, limit=1)], [3, 2, 1], "versions, page by page")
    refused(MISSING, 404, "no agent", lambda: agents.retrieve(full.id, version=4))
    refused(BAD, 400, "version", lambda: agents.retrieve(full.id, version=0))

    # What does not fit is named by its place.
    custom = lambda **more: {"type": "custom", "name": "a", "description": "b", "input_schema": {"type": "object"}, **more}
    make = lambda **more: agents.create(**{"name": "bad", "model": "scripted", **more})
    taken = anthropic.types.ToolNameConflictError
    for place, tools in [
        ("tools[0].name", [custom(name="bash")]),
        ("tools[0].name", [custom(name="mcp__a")]),
        ("tools[1]", [custom(), custom()]),
    ]:
        refused(taken, 400, place, lambda: make(tools=tools), "tool_name_conflict")
    refused(BAD, 400, "$ref", lambda: make(tools=[custom(input_schema={"type": "object", "properties": {"a": {"$ref": "#"}}})]))
    many = [custom(name=f"tool_{at}") for at in range(257)]
    exceeded = anthropic.types.AvailableToolsLimitExceededError
    refused(exceeded, 400, "257 tools", lambda: make(tools=many), "available_tools_limit_exceeded")
    toolset = {"type": "agent_toolset_20260401", "default_config": {"permission_policy": {"type": "auto"}}}
    refused(BAD, 400, "auto", lambda: make(tools=[toolset]))
    refused(BAD, 400, "`files`", lambda: make(mcp_servers=[{"type": "url", "name": "files", "url": "https://a.example"}]))
    refused(BAD, 400, "`none`", lambda: make(tools=[{"type": "mcp_toolset", "mcp_server_name": "none"}]))
    refused(BAD, 400, "multiagent", lambda: make(multiagent={"type": "coordinator", "agents": []}))
    refused(BAD, 400, "name", lambda: make(name=""))
    refused(beta.BetaInvalidMetadataError, 400, "metadata", lambda: make(metadata={"k" * 65: "v"}), "invalid_metadata")
    refused(BAD, 400, "model", lambda: agents.update(first.id, model=None))

    # Lists, archived or not, in pages, by time.
    same([agent.id for agent in agents.list(limit=1)], [full.id, first.id], "newest first, page by page")
    archived = agents.archive(first.id)
    check(archived.archived_at is not None, "archived")
    same(agents.archive(first.id), archived, "archived once")
    refused(BAD, 400, "archived", lambda: agents.update(first.id, name="late"))
    same([agent.id for agent in agents.list()], [full.id], "archived ones are left out")
    same([agent.id for agent in agents.list(include_archived=True)], [full.id, first.id], "and shown when asked for")
    hour = timedelta(hours=1)
    now = datetime.now(timezone.utc)
    same([agent.id for agent in agents.list(created_at_gte=now - hour, created_at_lte=now + hour)], [full.id], "by time")
    same(list(agents.list(created_at_gte=now + hour)), [], "none in the future")
    page = agents.list(limit=1, include_archived=True)
    refused(BAD, 400, "page", lambda: agents.list(page=page.next_page, created_at_gte=now + hour))
    refused(BAD, 400, "limit", lambda: agents.list(limit=101))
    refused(BAD, 400, "page", lambda: agents.list(page="page_forged"))
    refused(MISSING, 404, "no agent", lambda: agents.retrieve("agent_none"))


def check_environments(environments):
    made = environments.create(name="lab", config={"type": "self_hosted"}, description="d", metadata={"a": "1", "b": "2"})
    same((made.type, made.name, made.description, made.config.type), ("environment", "lab", "d", "self_hosted"), "made")
    same((made.scope, made.archived_at), ("organization", None), "scope")
    check(made.created_at.endswith("Z"), "times are texts here")
    same(environments.retrieve(made.id), made, "read again")
    refused(CONFLICT, 409, made.id, lambda: environments.create(name="lab"))

    cloud = environments.create(
        name="cloud", config={"type": "cloud", "networking": {"type": "limited", "allow_package_managers": True}, "packages": {"pip": ["numpy"]}}
    )
    networking = {"type": "limited", "allowed_hosts": [], "allow_mcp_servers": False, "allow_package_managers": True}
    same(plain(cloud.config.networking), networking, "networking")
    same((cloud.config.packages.pip, cloud.config.packages.apt), (["numpy"], []), "packages")

    after = environments.update(made.id, description=None, metadata={"a": None, "b": ""})
    same((after.name, after.description, after.metadata), ("lab", None, {}), "updated")
    refused(CONFLICT, 409, cloud.id, lambda: environments.update(made.id, name="cloud"))
    changed = lambda: environments.update(made.id, config={"type": "cloud"})
    refused(beta.BetaInvalidConfigTypeChangeError, 400, "config.type", changed, "invalid_config_type_change")
    refused(BAD, 400, "account", lambda: environments.create(name="mine", scope="account"))

    archived = environments.archive(cloud.id)
    check(archived.archived_at is not None, "archived")
    late = lambda: environments.update(cloud.id, description="late")
    refused(beta.BetaEnvironmentArchivedError, 400, "archived", late, "environment_archived")
    same([environment.id for environment in environments.list()], [made.id], "archived ones are left out")
    same([environment.id for environment in environments.list(include_archived=True, limit=1)], [cloud.id, made.id], "all")
    again = environments.create(name="cloud")
    deleted = environments.delete(again.id)
    same((deleted.id, deleted.type), (again.id, "environment_deleted"), "deleted")
    gone = lambda: environments.retrieve(again.id)
    refused(beta.BetaEnvironmentNotFoundError, 404, "no environment", gone, "environment_not_found")


def check_vaults(vaults):
    vault = vaults.create(display_name="secrets", metadata={"a": "1"})
    same((vault.type, vault.display_name, vault.metadata, vault.archived_at), ("vault", "secrets", {"a": "1"}, None), "made")
    same(vaults.retrieve(vault.id), vault, "read again")
    after = vaults.update(vault.id, display_name="renamed", metadata={"a": None, "b": "2"})
    same((after.display_name, after.metadata), ("renamed", {"b": "2"}), "updated")

    credentials = vaults.credentials
    url = "https://mcp.example.com/mcp"
    bearer = credentials.create(vault.id, auth={"type": "static_bearer", "mcp_server_url": url, "token": CANARY})
    same((bearer.type, bearer.vault_id, bearer.display_name, bearer.metadata), ("vault_credential", vault.id, None, {}), "made")
    same(plain(bearer.auth), {"type": "static_bearer", "mcp_server_url": url}, "auth")
    same(credentials.retrieve(bearer.id, vault_id=vault.id), bearer, "read again")
    twice = {"type": "mcp_oauth", "mcp_server_url": "HTTPS://MCP.example.com:443/mcp/", "access_token": CANARY}
    refused(CONFLICT, 409, bearer.id, lambda: credentials.create(vault.id, auth=twice))

    later = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(hours=1)
    oauth = credentials.create(
        vault.id,
        display_name="oauth",
        metadata={"k": "v"},
        auth={
            "type": "mcp_oauth",
            "mcp_server_url": "https://other.example.com/mcp",
            "access_token": CANARY,
            "expires_at": later,
            "refresh": {
                "token_endpoint": "https://auth.example.com/token",
                "client_id": "client",
                "refresh_token": CANARY,
                "token_endpoint_auth": {"type": "client_secret_basic", "client_secret": CANARY},
                "scope": "read",
            },
        },
    )
    same((oauth.auth.expires_at, oauth.auth.refresh.client_id, oauth.auth.refresh.scope), (later, "client", "read"), "oauth")
    same(plain(oauth.auth.refresh.token_endpoint_auth), {"type": "client_secret_basic"}, "client")
    variable = credentials.create(
        vault.id,
        auth={
            "type": "environment_variable",
            "secret_name": "API_KEY",
            "secret_value": CANARY,
            "networking": {"type": "limited", "allowed_hosts": ["*.example.com"]},
        },
    )
    same(plain(variable.auth.injection_location), {"body": True, "header": True}, "injected everywhere")
    for shown in (bearer, oauth, variable):
        check(CANARY not in shown.model_dump_json(), "a secret is shown")

    same(credentials.update(bearer.id, vault_id=vault.id), bearer, "nothing changed")
    credentials.update(bearer.id, vault_id=vault.id, auth={"type": "static_bearer", "token": CANARY + "2"})
    renamed = credentials.update(oauth.id, vault_id=vault.id, display_name="new", auth={"type": "mcp_oauth", "refresh": {"scope": ""}})
    same((renamed.display_name, renamed.auth.refresh.scope, renamed.auth.expires_at), ("new", None, later), "updated")
    wrong = {"type": "static_bearer", "token": CANARY}
    refused(BAD, 400, "auth.type", lambda: credentials.update(oauth.id, vault_id=vault.id, auth=wrong))
    past = {"type": "mcp_oauth", "expires_at": "2020-01-01T00:00:00Z"}
    refused(BAD, 400, "expires_at", lambda: credentials.update(oauth.id, vault_id=vault.id, auth=past))
    off = {"type": "environment_variable", "injection_location": {"header": False, "body": False}}
    refused(BAD, 400, "injection_location", lambda: credentials.update(variable.id, vault_id=vault.id, auth=off))
    refused(BAD, 400, "not repeated", lambda: credentials.create(vault.id, auth=CANARY))
    refused(BAD, 400, "not repeated", lambda: credentials.create(vault.id, auth={**wrong, "mcp_server_url": url, CANARY: 1}))

    same([one.id for one in credentials.list(vault.id, limit=1)], [variable.id, oauth.id, bearer.id], "newest first")
    archived = credentials.archive(bearer.id, vault_id=vault.id)
    check(archived.archived_at is not None, "archived")
    refused(BAD, 400, "archived", lambda: credentials.update(bearer.id, vault_id=vault.id, display_name="late"))
    again = credentials.create(vault.id, auth={"type": "static_bearer", "mcp_server_url": url, "token": CANARY})
    same([one.id for one in credentials.list(vault.id, include_archived=True)], [again.id, variable.id, oauth.id, bearer.id], "all")
    deleted = credentials.delete(again.id, vault_id=vault.id)
    same((deleted.id, deleted.type), (again.id, "vault_credential_deleted"), "deleted")
    refused(MISSING, 404, "no credential", lambda: credentials.retrieve(again.id, vault_id=vault.id))

    for at in range(18):
        made = {"type": "static_bearer", "mcp_server_url": f"https://s{at}.example.com", "token": CANARY}
        credentials.create(vault.id, auth=made)
    full = {"type": "static_bearer", "mcp_server_url": url, "token": CANARY}
    refused(BAD, 400, "20 active credentials", lambda: credentials.create(vault.id, auth=full))

    other = vaults.create(display_name="other")
    refused(MISSING, 404, "no credential", lambda: credentials.retrieve(oauth.id, vault_id=other.id))
    same([one.id for one in vaults.list(limit=1)], [other.id, vault.id], "newest first")
    check(vaults.archive(vault.id).archived_at is not None, "archived")
    same(list(credentials.list(vault.id)), [], "credentials go with their vault")
    refused(BAD, 400, "archived", lambda: credentials.create(vault.id, auth=full))
    refused(BAD, 400, "archived", lambda: vaults.update(vault.id, display_name="late"))
    same([one.id for one in vaults.list()], [other.id], "archived ones are left out")
    same(vaults.delete(vault.id).type, "vault_deleted", "deleted")
    refused(MISSING, 404, "no vault", lambda: vaults.retrieve(vault.id))


def main():
    base_url, manage_key = sys.argv[1:]
    client = anthropic.Anthropic(base_url=base_url, api_key=manage_key, max_retries=0)
    check_agents(client.beta.agents)
    check_environments(client.beta.environments)
    check_vaults(client.beta.vaults)
    print("agents_api: all as expected")


main()

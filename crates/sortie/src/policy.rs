//! `sortie policy`: policy files, without a gateway.

mod args;
mod learn;
mod past;
mod replay;
mod review;

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use sortie_gateway::GatewayConfig;
use sortie_identity::{Assurance, Caller};
use sortie_policy::{Act, Case, CaseResult, Counts, Decision, Engine, Explanation, Fact, Query, Target};

use self::args::ExplainArgs;
pub(crate) use self::args::PolicyCommand;
use crate::error::Failure;
use crate::output::{self, Style, printable};

pub(crate) fn run(command: PolicyCommand, style: Style) -> Result<(), Failure> {
    match command {
        PolicyCommand::Check { file, config, show_cedar } => check(&file, config.as_deref(), show_cedar, style),
        PolicyCommand::Explain(args) => explain(&args, style),
        PolicyCommand::Test { file, cases } => test(&file, &cases, style),
        PolicyCommand::Replay(args) => replay::run(&args, style),
        PolicyCommand::Learn(args) => learn::run(&args, style),
        PolicyCommand::Who(args) => review::who(&args, style),
        PolicyCommand::What(args) => review::what(&args, style),
    }
}

fn load(file: &Path) -> Result<Engine, Failure> {
    Engine::load(file, |path| std::fs::read_to_string(path))
        .map_err(|error| Failure::usage(error.problems.join("\nsortie: ")))
}

/// What `policy check` found.
#[derive(Serialize)]
struct Report {
    ok: bool,
    /// How many policies there are, those of the short form written out; absent when the file cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    policies: Option<usize>,
    /// What is wrong, `file:line: ...`.
    problems: Vec<String>,
    /// What is surely not meant, `file:line: ...`.
    warnings: Vec<String>,
    /// The policies as Cedar, if asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cedar: Vec<Value>,
}

fn check(file: &Path, config: Option<&Path>, show_cedar: bool, style: Style) -> Result<(), Failure> {
    let routes = config.map(GatewayConfig::load).transpose().map_err(Failure::usage)?.map(|config| config.routes);
    let engine = match Engine::load(file, |path| std::fs::read_to_string(path)) {
        Ok(engine) => engine,
        Err(error) if style == Style::Json => {
            let (problems, warnings) = (error.problems, Vec::new());
            output::json(&Report { ok: false, policies: None, problems, warnings, cedar: Vec::new() })?;
            return Err(Failure::usage(format!("{}: see problems", file.display())));
        }
        Err(error) => return Err(Failure::usage(error.problems.join("\nsortie: "))),
    };
    let mut warnings = engine.warnings();
    if let Some(routes) = routes {
        let known = |name: &str| routes.keys().any(|route| route.as_str() == name);
        let unknown = engine.routes().into_iter().filter(|(route, _)| !known(route));
        warnings.extend(unknown.map(|(route, place)| format!("{place}: the gateway has no route `{route}`")));
    }
    let policies = engine.len();
    match style {
        Style::Json => {
            let cedar = if show_cedar { texts(&engine) } else { Vec::new() };
            output::json(&Report { ok: true, policies: Some(policies), problems: Vec::new(), warnings, cedar })
        }
        Style::Table => {
            if show_cedar {
                print_cedar(&engine);
            }
            warnings.iter().for_each(|warning| println!("warning: {}", printable(warning)));
            println!("{}: good, {policies} {}", file.display(), if policies == 1 { "policy" } else { "policies" });
            Ok(())
        }
    }
}

fn texts(engine: &Engine) -> Vec<Value> {
    let text = |policy: sortie_policy::PolicyText<'_>| json!({ "policy": policy.name.as_str(), "place": policy.place, "cedar": policy.cedar });
    engine.texts().map(text).collect()
}

fn print_cedar(engine: &Engine) {
    for policy in engine.texts() {
        println!("// {}\n{}\n", printable(policy.place), printable(policy.cedar));
    }
}

fn explain(args: &ExplainArgs, style: Style) -> Result<(), Failure> {
    let engine = load(&args.file)?;
    let caller = caller(&args.caller)?;
    let now = match &args.time {
        None => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX)),
        Some(text) => text
            .parse::<Timestamp>()
            .map_err(|_| Failure::usage(format!("--time `{text}` is not a moment: write 2026-01-05T12:00:00Z")))?
            .as_second(),
    };
    if let Some(arguments) = &args.arguments {
        serde_json::from_str::<&serde_json::value::RawValue>(arguments)
            .map_err(|error| Failure::usage(format!("--arguments is not JSON: {error}")))?;
    }
    let (act, what) = act(args)?;
    let query = Query {
        caller: &caller,
        route: &args.route,
        act,
        arguments: args.arguments.as_deref(),
        now,
        region: args.region.as_deref(),
        counts: counts(&args.counts)?,
    };
    let explanation = engine.explain(&query);
    match style {
        Style::Json => {
            let mut value = explained(&explanation);
            if let (true, Some(object)) = (args.show_cedar, value.as_object_mut()) {
                object.insert("cedar".to_owned(), Value::Array(texts(&engine)));
            }
            output::json(&value)
        }
        Style::Table => {
            if args.show_cedar {
                print_cedar(&engine);
            }
            print_explained(&explanation, &caller, &what);
            Ok(())
        }
    }
}

fn act(args: &ExplainArgs) -> Result<(Act<'_>, String), Failure> {
    let of = |default: &'static str| args.method.as_deref().unwrap_or(default);
    match (&args.tool, &args.resource, &args.prompt, &args.http) {
        (Some(name), ..) => {
            let method = of("tools/call");
            Ok((Act::Mcp { method, target: Some(Target::Tool(name)) }, format!("{method} {name}")))
        }
        (_, Some(uri), ..) => {
            let method = of("resources/read");
            Ok((Act::Mcp { method, target: Some(Target::Resource(uri)) }, format!("{method} {uri}")))
        }
        (_, _, Some(name), _) => {
            let method = of("prompts/get");
            Ok((Act::Mcp { method, target: Some(Target::Prompt(name)) }, format!("{method} {name}")))
        }
        (_, _, _, Some(line)) => {
            let (method, path) = line
                .split_once(' ')
                .ok_or_else(|| Failure::usage(format!("--http is written \"GET /path\", not `{line}`")))?;
            Ok((Act::Http { method, path }, line.clone()))
        }
        _ => match &args.method {
            Some(method) => Ok((Act::Mcp { method, target: None }, method.clone())),
            None => Err(Failure::usage("say what is done: --tool, --resource, --prompt, --method or --http")),
        },
    }
}

/// A caller from `KEY=VALUE` pairs.
fn caller(pairs: &[String]) -> Result<Caller, Failure> {
    let mut caller = Caller::new("hub", "someone", Assurance::Asserted, i64::MAX);
    for pair in pairs {
        let (key, value) = pair.split_once('=').ok_or_else(|| {
            Failure::usage(format!("--caller `{pair}`: write KEY=VALUE, such as agent=research; repeat it for more"))
        })?;
        let value = value.to_owned();
        let slot = match key {
            "issuer" => {
                caller.issuer = value;
                continue;
            }
            "subject" => {
                caller.subject = value;
                continue;
            }
            "assurance" => {
                caller.assurance = match value.as_str() {
                    "asserted" => Assurance::Asserted,
                    "attested" => Assurance::Attested,
                    _ => return Err(Failure::usage("--caller assurance= is asserted or attested")),
                };
                continue;
            }
            "group" => {
                caller.claims.entry("groups".to_owned()).or_default().push(value);
                continue;
            }
            "actor" => {
                caller.actors.push(value);
                continue;
            }
            "organization" => &mut caller.organization,
            "workspace" => &mut caller.workspace,
            "key" => &mut caller.key,
            "user" => &mut caller.user,
            "agent" => &mut caller.agent,
            "agent_version" => &mut caller.agent_version,
            "session" => &mut caller.session,
            "tool_use" => &mut caller.tool_use,
            "region" => &mut caller.region,
            claim => match claim.strip_prefix("claim.") {
                Some(claim) => {
                    caller.claims.entry(claim.to_owned()).or_default().push(value);
                    continue;
                }
                None => {
                    return Err(Failure::usage(format!(
                        "--caller has no `{key}`: there are issuer, subject, assurance, organization, workspace, key, \
                         user, agent, agent_version, session, tool_use, region, group, actor and claim.NAME"
                    )));
                }
            },
        };
        *slot = Some(value);
    }
    Ok(caller)
}

fn counts(pairs: &[String]) -> Result<Counts, Failure> {
    let mut counts = Counts::default();
    for pair in pairs {
        let wrong = || Failure::usage(format!("--count `{pair}`: write minute=N, hour=N or day=N"));
        let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
        let value = value.parse().map_err(|_| wrong())?;
        match key {
            "minute" => counts.minute = value,
            "hour" => counts.hour = value,
            "day" => counts.day = value,
            _ => return Err(wrong()),
        }
    }
    Ok(counts)
}

fn explained(explanation: &Explanation) -> Value {
    let looked: Vec<Value> = explanation
        .looked_at
        .iter()
        .map(|one| {
            json!({
                "policy": one.name.as_str(),
                "place": one.place,
                "effect": effect(one.permits, one.asks),
                "verdict": one.verdict.as_str(),
            })
        })
        .collect();
    let mut value = decided(&explanation.decision);
    if let Some(object) = value.as_object_mut() {
        object.insert("listed".to_owned(), explanation.listed.into());
        object.insert("looked_at".to_owned(), looked.into());
        object.insert("of".to_owned(), explanation.policies.into());
    }
    value
}

fn decided(decision: &Decision) -> Value {
    let facts: serde_json::Map<String, Value> =
        decision.facts.iter().map(|(name, fact)| (name.clone(), fact_value(fact))).collect();
    let policies: Vec<&str> = decision.policies.iter().map(|policy| policy.as_str()).collect();
    json!({
        "decision": decision.effect.as_str(),
        "reason": decision.reason,
        "policies": policies,
        "ask": decision.ask,
        "facts": facts,
    })
}

fn fact_value(fact: &Fact) -> Value {
    match fact {
        Fact::String(text) | Fact::Decimal(text) => json!(text),
        Fact::Long(value) => json!(value),
        Fact::Bool(value) => json!(value),
        Fact::Set(texts) => json!(texts),
        Fact::Ip(ip) => json!(ip.to_string()),
        Fact::Datetime(millis) => json!(Timestamp::from_millisecond(*millis).map(|time| time.to_string()).ok()),
    }
}

fn effect(permits: bool, asks: bool) -> &'static str {
    match (permits, asks) {
        (true, true) => "ask",
        (true, false) => "permit",
        (false, _) => "forbid",
    }
}

fn print_explained(explanation: &Explanation, caller: &Caller, what: &str) {
    let decision = &explanation.decision;
    println!("{}#{}: {}", printable(&caller.issuer), printable(&caller.subject), printable(what));
    println!("{}: {}", decision.effect, printable(&decision.reason));
    println!("a list {} it", if explanation.listed { "may show" } else { "does not show" });
    for (name, fact) in &decision.facts {
        println!("fact {name} = {}", printable(&fact_value(fact).to_string()));
    }
    println!("looked at {} of {} policies:", explanation.looked_at.len(), explanation.policies);
    for one in &explanation.looked_at {
        let kind = effect(one.permits, one.asks);
        let (name, place) = (printable(one.name.as_str()), printable(&one.place));
        println!("  {kind:<6}  {:<14}  {name}  ({place})", one.verdict.as_str());
    }
}

fn test(file: &Path, files: &[PathBuf], style: Style) -> Result<(), Failure> {
    let engine = load(file)?;
    let mut cases: Vec<Case> = engine.cases().to_vec();
    let beside = file.with_extension("test.toml");
    let files = if files.is_empty() && beside.exists() { vec![beside.clone()] } else { files.to_vec() };
    for file in &files {
        let text = std::fs::read_to_string(file)
            .map_err(|error| Failure::usage(format!("{}: the cases cannot be read: {error}", file.display())))?;
        let more =
            Engine::read_cases(file, &text).map_err(|error| Failure::usage(error.problems.join("\nsortie: ")))?;
        cases.extend(more);
    }
    if cases.is_empty() {
        let beside = beside.display();
        return Err(Failure::usage(format!("no cases: write [[test]] into {} or {beside}", file.display())));
    }
    let results: Vec<CaseResult> = cases.iter().map(|case| engine.run_case(case)).collect();
    let failed = results.iter().filter(|result| !result.problems.is_empty()).count();
    match style {
        Style::Json => {
            let data: Vec<Value> = results.iter().map(result_value).collect();
            output::json(
                &json!({ "ok": failed == 0, "passed": results.len() - failed, "failed": failed, "data": data }),
            )?;
        }
        Style::Table => {
            let row = |result: &CaseResult| {
                let by: Vec<&str> = result.decision.policies.iter().map(|policy| policy.as_str()).collect();
                vec![
                    result.name.clone(),
                    result.expect.to_string(),
                    result.decision.effect.to_string(),
                    if by.is_empty() { "-".to_owned() } else { by.join(", ") },
                    if result.problems.is_empty() { "ok".to_owned() } else { "FAILED".to_owned() },
                ]
            };
            let rows: Vec<_> = results.iter().map(row).collect();
            output::table(&["case", "expected", "got", "by", "result"], &rows);
            for result in results.iter().filter(|result| !result.problems.is_empty()) {
                for problem in &result.problems {
                    println!("{}: {}: {}", printable(&result.place), printable(&result.name), printable(problem));
                }
            }
        }
    }
    match failed {
        0 => Ok(()),
        failed => Err(Failure::failed(format!("{failed} of {} cases failed", results.len()))),
    }
}

fn result_value(result: &CaseResult) -> Value {
    let mut value = decided(&result.decision);
    if let Some(object) = value.as_object_mut() {
        object.insert("name".to_owned(), json!(result.name));
        object.insert("place".to_owned(), json!(result.place));
        object.insert("expect".to_owned(), json!(result.expect.as_str()));
        object.insert("ok".to_owned(), json!(result.problems.is_empty()));
        object.insert("problems".to_owned(), json!(result.problems));
    }
    value
}

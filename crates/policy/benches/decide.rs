//! How long a decision takes, beside Cedar alone over all policies in the same run: `cargo xtask bench policy`. Cedar alone
//! makes the entities of each call and takes all facts of the file, since it cannot know which of them are needed.

use std::fmt::Write as _;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use sortie_identity::{Assurance, Caller};
use sortie_policy::{Act, Counts, Engine, Query, Target};

/// How long one figure is measured.
const SPAN: Duration = Duration::from_millis(300);
/// Rounds, of which the best counts: the others were disturbed.
const ROUNDS: usize = 3;
/// Routes that are asked about.
const ROUTED: usize = 10;

fn main() {
    println!("one decision, best of {ROUNDS} rounds of {} ms\n", SPAN.as_millis());
    println!(
        "{:<44} {:>10} {:>12} {:>8} {:>12}",
        "policies, 100 callers", "decision", "Cedar alone", "ratio", "first time"
    );
    for policies in [1, 10, 100, 1000, 10_000] {
        let begin = Instant::now();
        let engine = engine(policies);
        if policies == 10_000 {
            println!("{:<44} {:>7.2} s", "(reading and checking 10000 rules)", begin.elapsed().as_secs_f64());
        }
        let callers = callers(100, policies);
        row(&format!("{policies} policies, with arguments"), &engine, &callers);
    }
    println!(
        "\n{:<44} {:>10} {:>12} {:>8} {:>12}",
        "callers, 1000 policies", "decision", "Cedar alone", "ratio", "first time"
    );
    let engine = engine(1000);
    for count in [1, 10, 100, 1000] {
        row(&format!("{count} callers, with arguments"), &engine, &callers(count, 1000));
    }
    let callers = callers(100, 1000);
    println!();
    let plain = best(|at| black_box(engine.decide(&query(&callers, at, "list", None))).policies.len());
    println!("{:<44} {:>10}", "a tool whose policies look at no arguments", micros(plain));
    let seen = best(|at| usize::from(engine.may_see(black_box(&query(&callers, at, "pay", None)))));
    println!("{:<44} {:>10}", "may a list show it?", micros(seen));
    let stranger = best(|at| black_box(engine.decide(&query(&callers, at, "nosuch", None))).policies.len());
    println!("{:<44} {:>10}", "a tool that no policy names", micros(stranger));
}

fn row(name: &str, engine: &Engine, callers: &[Caller]) {
    let arguments = Some(r#"{"to":"DE02 1203 0000 0000 2020 51","amount":99.5,"note":"rent"}"#);
    let first = Instant::now();
    for at in 0..callers.len() {
        black_box(engine.decide(&query(callers, at, "pay", arguments)));
    }
    let first = first.elapsed() / u32::try_from(callers.len()).unwrap_or(1);
    let ours = best(|at| black_box(engine.decide(&query(callers, at, "pay", arguments))).policies.len());
    let cedar = best(|at| black_box(engine.decide_plainly(&query(callers, at, "pay", arguments))).is_ok().into());
    let ratio = cedar.as_secs_f64() / ours.as_secs_f64();
    println!("{name:<44} {:>10} {:>12} {ratio:>7.1}x {:>12}", micros(ours), micros(cedar), micros(first));
}

/// The time of one call of a function that is told how often it was called before.
fn best(mut one: impl FnMut(usize) -> usize) -> Duration {
    let mut at = 0;
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        let mut count = 0u32;
        while begin.elapsed() < SPAN {
            for _ in 0..16 {
                black_box(one(at));
                at += 1;
                count += 1;
            }
        }
        best = best.min(begin.elapsed() / count);
    }
    best
}

fn micros(time: Duration) -> String {
    format!("{:.2} us", time.as_secs_f64() * 1e6)
}

/// A typical file: rules for agents and tools, some with conditions on arguments and hours, a few for all.
fn engine(policies: usize) -> Engine {
    let mut text = "timezone = 'Europe/Berlin'\n".to_owned();
    for at in 0..policies {
        let (agent, route) = (at, at % 100);
        let _ = match at % 3 {
            0 => writeln!(
                text,
                "[[allow]]\nid = 'p{at}'\nagents = 'agent-{agent}'\nroutes = 'bank-{route}'\ntools = ['pay', 'list']\n\
                 where = [{{ pointer = '/amount', type = 'decimal', max = 100 }}]"
            ),
            1 => writeln!(
                text,
                "[[allow]]\nid = 'p{at}'\nagents = 'agent-{agent}'\nroutes = 'bank-{route}'\ntools = 'list_*'\nhours = '06:00-22:00'"
            ),
            _ => writeln!(text, "[[deny]]\nid = 'p{at}'\nroutes = 'bank-{route}'\ntools = 'drop_{at}'"),
        };
    }
    Engine::load(Path::new("bench.toml"), |_| Ok(text.clone())).expect("the file is good")
}

fn callers(count: usize, policies: usize) -> Vec<Caller> {
    let one = |at: usize| {
        let mut caller = Caller::new("https://hub.example.com", format!("key_{at:08}"), Assurance::Asserted, i64::MAX);
        caller.organization = Some("org_0123456789".to_owned());
        caller.workspace = Some("wrkspc_0123456789".to_owned());
        caller.key = Some(format!("apikey_{at:08}"));
        // Those that a policy with arguments is for, on the route that they ask about.
        let of = 3 * (at % ROUTED) + 300 * (at / ROUTED % (policies / 300).max(1));
        caller.agent = Some(format!("agent-{}", of % policies.next_multiple_of(3)));
        caller.session = Some(format!("sesn_{at:08}"));
        caller
    };
    (0..count).map(one).collect()
}

fn query<'a>(callers: &'a [Caller], at: usize, tool: &'a str, arguments: Option<&'a str>) -> Query<'a> {
    const ROUTES: [&str; ROUTED] =
        ["bank-0", "bank-3", "bank-6", "bank-9", "bank-12", "bank-15", "bank-18", "bank-21", "bank-24", "bank-27"];
    let index = at % callers.len();
    let caller = callers.get(index).expect("within bounds");
    let route = ROUTES.get(index % ROUTED).expect("within bounds");
    let act = Act::Mcp { method: "tools/call", target: Some(Target::Tool(tool)) };
    let now = 1_767_614_400 + i64::try_from(at / 1000).unwrap_or(0);
    Query { caller, route, act, arguments, now, region: Some("eu-1"), counts: Counts::default() }
}

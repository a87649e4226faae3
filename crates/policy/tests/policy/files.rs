//! Policy files, and what is said of wrong ones.

use sortie_policy::{Effect, Engine};

use crate::common::{call, caller, cedar, load, load_all, problems, toml};

/// The one problem of a file.
fn problem(name: &str, text: &str) -> String {
    let all = problems(name, text);
    assert_eq!(all.len(), 1, "{all:?}");
    all.concat()
}

#[test]
fn problems_name_file_and_line() {
    for (text, place, says) in [
        ("permit(principal, action, resource);\n\nallow(principal, action, resource);", "p.cedar:3: ", "allow"),
        ("// x\npermit(principal, action, resource)\nwhen { context.houre > 3 };", "p.cedar:2: ", "houre"),
        ("permit(principal, action, resource)", "p.cedar:1: ", "unexpected end"),
        ("permit(principal, action,\nresource) when { 1 + };", "p.cedar:2: ", "unexpected token"),
        ("permit(principal == ?principal, action, resource);", "p.cedar:1: ", "template"),
        ("\npermit(principal, action == Action::\"tool/call\", resource);", "p.cedar:2: ", "tool/call"),
        ("permit(principal in User::\"x\", action, resource);", "p.cedar:1: ", "User"),
        ("permit(principal, action, resource) when { principal.subject == 3 };", "p.cedar:1: ", "types"),
        ("permit(principal, action, resource) when { principal.user == \"x\" };", "p.cedar:1: ", "has user"),
        (
            "permit(principal, action == Action::\"tools/call\", resource)\nwhen { context.facts.amount < 3 };",
            "p.cedar:1: ",
            "[facts.amount]",
        ),
        (
            "permit(principal, action == Action::\"tools/call\", resource) when { context.facts == {} };",
            "p.cedar:1: ",
            "context.facts.NAME",
        ),
        ("@ask(\"x\") forbid(principal, action, resource);", "p.cedar:1: ", "@ask goes with permit"),
        ("@id(\"\") permit(principal, action, resource);", "p.cedar:1: ", "@id"),
        (
            "@id(\"a\") permit(principal, action, resource);\n@id(\"a\") permit(principal, action, resource);",
            "p.cedar:2: ",
            "taken by p.cedar:1",
        ),
    ] {
        let problem = problem("p.cedar", text);
        assert!(problem.starts_with(place), "{text}: {problem}");
        assert!(problem.contains(says), "{text}: {problem}");
    }
}

#[test]
fn problems_of_the_short_form_name_the_way_out() {
    for (text, line, says) in [
        ("[[allow]]\n", 1, "routes = \"*\""),
        ("\n[[allow]]\ntool = 'x'\n", 3, "unknown field `tool`"),
        ("[[allow]]\ntools = []\n", 1, "empty"),
        ("[[allow]]\ntools = 3\n", 2, "a text or a list of texts"),
        ("[[allow]]\nagents = ['a*']\n", 1, "no stars"),
        ("[[allow]]\ncallers = 'alice'\n", 1, "ISSUER#SUBJECT"),
        ("[[allow]]\ntools = 'x'\nassurance = 'sure'\n", 1, "attested"),
        ("[[allow]]\ntools = 'x'\nwhy = 'y'\n", 1, "[[ask]]"),
        ("[[ask]]\ntools = 'x'\n", 1, "why = "),
        ("[[allow]]\ntools = 'x'\nhours = '8-18'\n", 1, "08:00-18:00"),
        ("[[allow]]\ntools = 'x'\nhours = '08:00-08:00'\n", 1, "empty"),
        ("[[allow]]\ntools = 'x'\nweekdays = 'monday'\n", 1, "mon-fri"),
        ("[[deny]]\ntools = 'x'\nmax_per_day = 3\n", 1, "[[allow]]"),
        ("[[allow]]\nroutes = 'x'\nwhere = [{ pointer = '/a', max = 3 }]\n", 1, "name the `tools`"),
        ("[[allow]]\ntools = 'x'\nwhere = [{ pointer = '/a', type = 'string' }]\n", 1, "operator"),
        ("[[allow]]\ntools = 'x'\nwhere = [{ pointer = 'a', max = 3 }]\n", 1, "write `/a`"),
        ("[[allow]]\ntools = 'x'\nwhere = [{ pointer = '/a', max = 3, tools = 'y' }]\n", 1, "leave them out"),
        ("timezone = 'Mars/Olympus'\n", 1, "Europe/Berlin"),
        ("[facts.Amount]\npointer = '/a'\ntype = 'long'\n", 1, "lower-case"),
        ("[facts.in]\npointer = '/a'\ntype = 'long'\n", 1, "taken"),
        ("[facts.a]\npointer = '/a'\ntype = 'number'\n", 3, "unknown variant"),
        ("cedar = ['none.cedar']\n", 0, "cannot be read"),
        ("x", 1, "expected"),
    ] {
        let problem = problem("p.toml", text);
        let place = if line == 0 { "none.cedar: ".to_owned() } else { format!("p.toml:{line}: ") };
        assert!(problem.starts_with(&place), "{text}: {problem}");
        assert!(problem.contains(says), "{text}: {problem}");
    }
}

#[test]
fn many_problems_are_told_at_once() {
    let all = problems("p.toml", &"[[allow]]\nhours = '1'\ntools = 'x'\n".repeat(30));
    assert_eq!(all.len(), 20);
    assert!(all[1].starts_with("p.toml:4: "));
}

#[test]
fn facts_of_different_tools_do_not_meet_in_one_policy() {
    let files = [
        (
            "p.toml",
            "cedar = ['p.cedar']\n[facts]\na = { pointer = '/a', type = 'long', tools = 'x' }\nb = { pointer = '/b', type = 'long' }",
        ),
        (
            "p.cedar",
            "forbid(principal, action == Action::\"tools/call\", resource) when { context.facts.a > 1 || context.facts.b > 1 };",
        ),
    ];
    let error = load_all("p.toml", &files).expect_err("different tools").to_string();
    assert!(error.starts_with("p.cedar:1: the facts `a` and `b` are for different tools"), "{error}");
}

#[test]
fn nothing_denies_everything() {
    for (name, text) in [("p.cedar", "// nothing\n"), ("p.toml", "")] {
        let engine = load(name, text).expect("an empty file is a policy");
        assert!(engine.is_empty());
        assert_eq!(engine.decide(&call(&caller("s"), "t", "{}")).effect, Effect::Deny);
        assert_eq!(engine.warnings(), ["there are no policies, so everything is denied"]);
    }
}

#[test]
fn warnings_tell_what_is_surely_not_meant() {
    let engine = cedar(
        "permit(principal, action == Action::\"tools/call\", resource == Prompt::\"r/p\");\n\
         permit(principal, action, resource) when { false };\n\
         @why(\"x\") permit(principal, action, resource == Tool::\"r/p\u{430}y\");",
    );
    let warnings = engine.warnings();
    let said = |place: &str, what: &str| warnings.iter().any(|one| one.starts_with(place) && one.contains(what));
    assert!(said("policy.cedar:2: ", "impossible"), "{warnings:?}");
    assert!(said("policy.cedar:3: ", "@why"), "{warnings:?}");
    assert!(said("policy.cedar:3: ", "mixed script"), "{warnings:?}");
    let engine = toml("[facts.a]\npointer = '/a'\ntype = 'long'\n[[allow]]\ntools = 'x'");
    assert_eq!(engine.warnings(), ["policy.toml:1: no policy uses the fact `a`"]);
}

#[test]
fn the_routes_that_policies_name_are_known() {
    let engine = toml("[[allow]]\nroutes = ['a', 'b']\ntools = 'x'\n[[deny]]\nroutes = 'c*'");
    let routes: Vec<String> = engine.routes().into_iter().map(|(route, _)| route).collect();
    assert_eq!(routes, ["a", "b"]);
}

#[test]
fn what_is_written_from_the_short_form_means_the_same_as_cedar() {
    let short = toml(
        "[[allow]]\nid='x'\nagents=['a','q\"uote\\\\']\nroutes=['bank','b2']\ntools=['read_*','one']\nhours=['08:00-18:00','22:00-23:00']\n\
         [[deny]]\nroutes='b*'\nassurance='attested'\n[[allow]]\nresources='*'\nusers='u'\nregions='eu'\n[[allow]]\nroutes='*'\nprompts='p'",
    );
    let text: Vec<&str> = short.texts().map(|policy| policy.cedar).collect();
    let again = cedar(&text.join("\n"));
    assert_eq!(again.len(), short.len());
    let again: Vec<String> = again.texts().map(|policy| policy.cedar.to_owned()).collect();
    assert_eq!(again, text);
}

#[test]
fn cases_are_run() {
    let engine = toml(
        r#"
        [[allow]]
        id = "small"
        agents = "a"
        routes = "bank"
        tools = "pay"
        where = [{ pointer = "/amount", max = 100 }]

        [callers.ours]
        agent = "a"

        [[test]]
        name = "a small amount"
        caller = "ours"
        route = "bank"
        tool = "pay"
        arguments = { amount = 100 }
        expect = "allow"
        by = "small"
        listed = true

        [[test]]
        caller = { agent = "b" }
        route = "bank"
        tool = "pay"
        arguments_json = '{"amount": 1.0}'
        expect = "allow"
        "#,
    );
    let results: Vec<_> = engine.cases().iter().map(|case| engine.run_case(case)).collect();
    assert_eq!(results[0].problems, [""; 0]);
    assert_eq!(results[0].name, "a small amount");
    assert_eq!(results[1].problems, ["expected allow, got deny: no policy allows it"]);
    assert_eq!(results[1].name, "policy.toml:22");
    for (text, says) in [
        ("[[test]]\nroute='r'\nexpect='allow'", "say what is done"),
        ("[[test]]\nroute='r'\ntool='t'\nexpect='yes'", "\"allow\""),
        ("[[test]]\nroute='r'\ntool='t'\nexpect='allow'\ncaller='x'", "[callers.x]"),
        ("[[test]]\nroute='r'\ntool='t'\nexpect='allow'\ntime='noon'", "2026-01-05T12:00:00Z"),
        ("[[test]]\nroute='r'\ntool='t'\nexpects='allow'", "unknown field"),
    ] {
        let error = Engine::read_cases(std::path::Path::new("c.toml"), text).expect_err(text).to_string();
        assert!(error.starts_with("c.toml:") && error.contains(says), "{text}: {error}");
    }
}

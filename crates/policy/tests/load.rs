//! Loading and deciding.

use std::path::Path;

use sortie_identity::{Assurance, Caller};
use sortie_policy::{Act, Counts, Effect, Engine, Query, Target};

#[test]
fn a_tool_is_denied_unless_it_is_permitted() {
    let text = r#"permit(principal, action == Action::"tools/call", resource == Tool::"r/t");"#;
    let engine = Engine::load(Path::new("p.cedar"), |_| Ok(text.to_owned())).expect("loads");
    let caller = Caller::new("i", "s", Assurance::Asserted, 0);
    let decide = |name| {
        let act = Act::Mcp { method: "tools/call", target: Some(Target::Tool(name)) };
        let counts = Counts::default();
        engine.decide(&Query { caller: &caller, route: "r", act, arguments: None, now: 0, region: None, counts }).effect
    };
    assert_eq!(decide("t"), Effect::Allow);
    assert_eq!(decide("u"), Effect::Deny);
}

use std::path::Path;

use sortie_identity::Assurance;

use super::*;
use crate::config::GatewayConfig;

fn limits(text: &str) -> Limits {
    limits_after(text, None)
}

fn limits_after(text: &str, previous: Option<&Limits>) -> Limits {
    let text = format!("[routes.docs]\nupstream = \"http://10.0.0.5:80\"\n{text}");
    let config = GatewayConfig::parse(&text, Path::new("gateway.toml")).expect("config");
    Limits::new(&config.limits, previous).expect("limits")
}

fn caller(subject: &str) -> Caller {
    Caller::new("hub", subject, Assurance::Asserted, 0)
}

/// One request: the status of its refusal, or none.
fn call(limits: &Limits, subject: &str, route: &str, messages: &[Option<&str>]) -> Option<u16> {
    let caller = caller(subject);
    let request = Request { caller: &caller, route, messages };
    limits.admit(&request).err().map(|error| {
        assert_eq!(error.hop, Hop::Policy);
        error.status.as_u16()
    })
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_one_caller_does_not_touch_another() {
    let limits = limits("[[limits]]\nrate = \"3/m\"\n[[limits]]\nper = \"route\"\nrate = \"100/m\"\n");
    for _ in 0..10_000 {
        let _some_refused = call(&limits, "flood", "docs", &[None]);
    }
    // Also what all share has lost no more than what the flood was let.
    for subject in 0..30 {
        for _ in 0..3 {
            assert_eq!(call(&limits, &format!("s{subject}"), "docs", &[None]), None);
        }
        assert_eq!(call(&limits, &format!("s{subject}"), "docs", &[None]), Some(429));
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_is_not_evaded() {
    let limits = limits("[[limits]]\ntools = [\"pay*\"]\nper = \"caller+tool\"\nrate = \"2/h\"\n");
    // Other tools are free.
    for _ in 0..5 {
        assert_eq!(call(&limits, "a", "docs", &[Some("read")]), None);
        assert_eq!(call(&limits, "a", "docs", &[None]), None);
    }
    // Names in another case are the same tool, and each element of a batch counts.
    assert_eq!(call(&limits, "a", "docs", &[Some("pay"), None, Some("read"), Some("PAY")]), None);
    for name in ["pay", "Pay", "PAY", "pAy"] {
        assert_eq!(call(&limits, "a", "docs", &[Some(name)]), Some(429), "{name}");
    }
    assert_eq!(call(&limits, "a", "docs", &[Some("paypal")]), None, "another tool");
    // A batch with more than may ever come at once.
    let refused = limits.admit(&Request { caller: &caller("b"), route: "docs", messages: &[Some("pay"); 3] });
    assert_eq!(refused.err().and_then(|error| error.retry_after), None);
    assert_eq!(call(&limits, "b", "docs", &[Some("pay"), Some("pay")]), None, "the refused batch took nothing");
}

#[tokio::test(start_paused = true)]
async fn one_caller_is_one_on_all_routes_and_in_all_sessions() {
    let limits = limits("[[limits]]\nrate = \"2/m\"\nburst = 2\n");
    let mut one = caller("a");
    one.session = Some("sesn_1".to_owned());
    one.agent = Some("x".to_owned());
    assert!(limits.admit(&Request { caller: &one, route: "docs", messages: &[None] }).is_ok());
    one.session = Some("sesn_2".to_owned());
    one.token_id = Some("other".to_owned());
    assert!(limits.admit(&Request { caller: &one, route: "bank", messages: &[None] }).is_ok());
    one.agent = None;
    let refused = limits.admit(&Request { caller: &one, route: "third", messages: &[None] }).err().expect("refused");
    assert_eq!((refused.status.as_u16(), refused.retry_after), (429, Some(30)));
    assert!(refused.reason.contains("2/m; try again in 30 s"), "{}", refused.reason);
    tokio::time::advance(Duration::from_secs(30)).await;
    assert!(limits.admit(&Request { caller: &one, route: "third", messages: &[None] }).is_ok());
}

#[tokio::test(start_paused = true)]
async fn limits_are_for_whom_they_name() {
    let limits = limits(
        "[[limits]]\nroutes = [\"d*\"]\ncallers = [\"key:*\"]\nrate = \"1/d\"\n\
         [[limits]]\nagents = [\"{crawler,bot-*}\"]\nrate = \"1/d\"\n\
         [[limits]]\nworkspaces = [\"wrkspc_1\"]\nrate = \"1/d\"\n",
    );
    for _ in 0..3 {
        assert_eq!(call(&limits, "user:1", "docs", &[None]), None);
        assert_eq!(call(&limits, "key:1", "bank", &[None]), None);
    }
    assert_eq!(call(&limits, "key:1", "docs", &[None]), None);
    assert_eq!(call(&limits, "key:1", "docs", &[None]), Some(429));
    let mut bot = caller("b");
    bot.agent = Some("bot-7".to_owned());
    let mut guest = caller("g");
    guest.workspace = Some("wrkspc_1".to_owned());
    for one in [bot, guest] {
        let request = Request { caller: &one, route: "docs", messages: &[None] };
        assert!(limits.admit(&request).is_ok());
        assert!(limits.admit(&request).is_err(), "{}", one.subject);
    }
}

#[tokio::test]
async fn calls_at_once_are_held_until_they_end() {
    let limits = limits("[[limits]]\nconcurrency = 2\n");
    let caller = caller("a");
    let request = Request { caller: &caller, route: "docs", messages: &[None] };
    let first = limits.admit(&request).expect("room");
    let second = limits.admit(&request).expect("room");
    let refused = limits.admit(&request).err().expect("refused");
    assert_eq!((refused.status.as_u16(), refused.retry_after), (429, Some(TRY_AGAIN)));
    drop(first);
    let third = limits.admit(&request).expect("room again");
    drop((second, third));
}

#[tokio::test(start_paused = true)]
async fn a_reload_resets_nothing_that_stays() {
    let one = "[[limits]]\nrate = \"1/h\"\n";
    let before = limits(one);
    assert_eq!(call(&before, "a", "docs", &[None]), None);
    let after = limits_after(&format!("{one}[[limits]]\nconcurrency = 5\n"), Some(&before));
    assert_eq!(call(&after, "a", "docs", &[None]), Some(429));
    let changed = limits_after("[[limits]]\nrate = \"2/h\"\n", Some(&after));
    assert_eq!(call(&changed, "a", "docs", &[None]), None);
    assert!(limits_after("", Some(&changed)).is_empty());
}

/// That it does not grow with their number; the bound is loose, since other work on the machine counts, too.
#[tokio::test]
async fn many_callers_cost_no_more_than_one() {
    let limits = limits("[[limits]]\nrate = \"1000000/s\"\n");
    let callers: Vec<_> = (0..1000).map(|number| caller(&format!("key:{number}"))).collect();
    let time = |callers: &[Caller]| {
        let began = std::time::Instant::now();
        for round in 0..20_000 {
            let request = Request { caller: &callers[round % callers.len()], route: "docs", messages: &[None] };
            let _admitted = limits.admit(&request);
        }
        began.elapsed()
    };
    let _warm = (time(&callers[..1]), time(&callers));
    let ratio =
        (0..5).map(|_| time(&callers).as_secs_f64() / time(&callers[..1]).as_secs_f64()).fold(f64::MAX, f64::min);
    assert!(ratio < 4.0, "{ratio}");
}

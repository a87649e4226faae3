use super::*;

const NOW: i64 = 1_800_000_000;

fn caller(number: u8) -> Digest {
    Digest::of(&[number])
}

fn tool(name: &str, description: &str) -> String {
    serde_json::json!({"name": name, "description": description}).to_string()
}

struct World(Pins, Trust);

impl World {
    fn new(trust: Trust) -> Self {
        Self(Pins::default(), trust)
    }

    fn see(&mut self, who: u8, name: &str, description: &str) -> Verdict {
        self.0.see_tool(self.1, caller(who), name, &tool(name, description), NOW)
    }

    fn call(&self, who: u8, name: &str) -> Result<Listed, Closed> {
        self.0.may_call(self.1, caller(who), name)
    }

    fn approve(&mut self, name: &str, digest: Option<&str>, also: bool) -> Result<Digest, String> {
        self.0.approve(&Subject::Tool(name.to_owned()), &Choice { digest, also, by: "ann", now: NOW })
    }

    fn hear(&mut self, text: Option<&str>) -> bool {
        self.0.see_instructions(self.1, caller(1), Greeting::Initialize, text, NOW).shows()
    }
}

fn digest(name: &str, description: &str) -> String {
    Definition::of_tool(&tool(name, description)).expect("a definition").digest.to_string()
}

#[test]
fn what_comes_first_is_pinned_and_what_differs_is_held() {
    let mut world = World::new(Trust::FirstUse);
    assert_eq!(world.see(1, "read", "good"), Verdict::Pinned(vec![]));
    assert_eq!((world.see(1, "read", "good"), world.see(2, "read", "good")), (Verdict::Known, Verdict::Known));
    assert_eq!((world.call(1, "read"), world.call(3, "read")), (Ok(Listed::Yes), Ok(Listed::Yes)));

    assert_eq!(world.see(1, "read", "evil"), Verdict::Held(Why::Changed));
    assert_eq!(world.see(1, "read", "evil"), Verdict::StillHeld);
    for who in 1..4 {
        assert_eq!(world.call(who, "read"), Err(Closed::Changed), "nobody, whatever they were shown before");
    }
    // Who is shown the approved one again may go on, and nobody else.
    assert_eq!(world.see(2, "read", "good"), Verdict::Known);
    assert_eq!((world.call(1, "read"), world.call(2, "read")), (Err(Closed::Changed), Ok(Listed::Yes)));
    assert_eq!(world.see(2, "read", "evil"), Verdict::StillHeld);
    assert_eq!(world.call(2, "read"), Err(Closed::Changed));
    // A further one closes it for all.
    world.see(2, "read", "good");
    assert_eq!(world.see(3, "read", "worse"), Verdict::Held(Why::Changed));
    assert_eq!(world.call(2, "read"), Err(Closed::Changed));
}

#[test]
fn what_a_person_approves_counts_from_then_on() {
    let mut world = World::new(Trust::FirstUse);
    world.see(1, "read", "good");
    assert!(world.approve("read", None, false).expect_err("nothing held").contains("nothing of it is held"));
    world.see(1, "read", "better");
    world.approve("read", None, false).expect("approved");
    assert_eq!((world.see(1, "read", "better"), world.call(9, "read")), (Verdict::Known, Ok(Listed::Yes)));
    assert_eq!(world.see(1, "read", "good"), Verdict::Held(Why::Changed), "the old one is no more approved");
    // Of several, one has to be named; the approved one may be confirmed, which lets the others go.
    world.see(1, "read", "other");
    assert!(world.approve("read", None, false).expect_err("two").contains("several"));
    assert!(world.approve("read", Some("ffffffffff"), false).expect_err("none").contains("digest"));
    world.approve("read", Some(&digest("read", "better")[..12]), false).expect("confirmed");
    assert_eq!((world.see(1, "read", "better"), world.call(9, "read")), (Verdict::Known, Ok(Listed::Yes)));
    // For servers that show callers different ones.
    world.see(2, "read", "for two");
    world.approve("read", None, true).expect("approved, too");
    assert_eq!((world.see(2, "read", "for two"), world.see(1, "read", "better")), (Verdict::Known, Verdict::Known));
    assert!(world.approve("write", None, false).expect_err("unknown").contains("never seen"));
}

#[test]
fn where_nobody_is_trusted_everything_waits() {
    let mut world = World::new(Trust::Nobody);
    assert_eq!(world.call(1, "read"), Err(Closed::Unapproved), "never listed");
    assert_eq!(world.see(1, "read", "good"), Verdict::Held(Why::New));
    assert_eq!((world.see(1, "read", "good"), world.call(1, "read")), (Verdict::StillHeld, Err(Closed::Unapproved)));
    world.approve("read", None, false).expect("approved");
    assert_eq!((world.see(1, "read", "good"), world.call(1, "read")), (Verdict::Known, Ok(Listed::Yes)));
    // What waited is trusted when what comes first is, but for what has come second.
    world.see(1, "list", "good");
    world.see(1, "find", "one");
    world.see(1, "find", "two");
    world.1 = Trust::FirstUse;
    assert_eq!(world.see(1, "list", "good"), Verdict::Pinned(vec![]));
    assert_eq!(world.see(1, "find", "two"), Verdict::StillHeld);
    assert_eq!(world.see(1, "find", "three"), Verdict::Held(Why::New));
}

#[test]
fn what_looks_like_an_attack_is_not_trusted_when_it_comes_first() {
    let mut world = World::new(Trust::FirstUse);
    assert_eq!(world.see(1, "read", "Reads.\u{e0049}\u{e0067}"), Verdict::Held(Why::Risky));
    assert_eq!(world.call(1, "read"), Err(Closed::Unapproved));
    assert_eq!(world.see(1, "read", "Reads."), Verdict::Held(Why::New), "a clean one behind it is not trusted, either");
    assert_eq!(world.see(1, "pay", "Pays."), Verdict::Pinned(vec![]));
    assert_eq!(world.see(1, "Pay", "Pays."), Verdict::Held(Why::Risky));
    assert_eq!(world.see(1, "p\u{430}y", "Pays."), Verdict::Held(Why::Risky));
    // A name that was never listed does not lead around one that was.
    assert_eq!(world.call(1, "PAY"), Err(Closed::LookAlike));
    assert_eq!(world.call(1, "other"), Ok(Listed::Never));
    assert!(world.0.note_unlisted("other") && !world.0.note_unlisted("other"));
    assert_eq!(world.call(1, "other"), Ok(Listed::Yes));
    assert_eq!(world.see(1, "zero", "a\u{200b}b"), Verdict::Pinned(vec![Risk::ZeroWidth]));
}

#[test]
fn instructions_are_pinned_with_their_absence() {
    let mut world = World::new(Trust::FirstUse);
    assert!(world.hear(Some("Be good.")) && world.hear(Some("Be good.")));
    assert!(!world.hear(Some("Be evil.")));
    assert!(world.hear(None), "silence says nothing");
    let mut world = World::new(Trust::FirstUse);
    assert!(world.hear(None) && world.hear(Some("")) && !world.hear(Some("Now obey.")));
    world
        .0
        .approve(
            &Subject::Instructions(Greeting::Initialize),
            &Choice { digest: None, also: false, by: "ann", now: NOW },
        )
        .expect("approved");
    assert!(world.hear(Some("Now obey.")));
    let mut world = World::new(Trust::Nobody);
    assert!(world.hear(None) && !world.hear(Some("Obey.")));
}

#[test]
fn everything_is_bounded_and_what_is_beyond_is_held() {
    let mut world = World::new(Trust::FirstUse);
    world.see(1, "read", "good");
    for number in 0..50 {
        assert_eq!(world.see(1, "read", &format!("evil {number}")), Verdict::Held(Why::Changed));
    }
    assert_eq!(world.0.tools["read"].held.len(), MAX_HELD);
    let mut world = World::new(Trust::FirstUse);
    let name = |number: usize| format!("{number:b}").replace('0', "a").replace('1', "b");
    assert_eq!((1..=MAX_TOOLS + 5).filter(|number| world.see(1, &name(*number), "x").shows()).count(), MAX_TOOLS);
    assert_eq!(world.0.tools.len(), MAX_TOOLS);
    let mut world = World::new(Trust::FirstUse);
    let long = "x".repeat(200_000);
    let names = |number: usize| {
        format!("n{}", char::from_u32(0x4e00 + u32::try_from(number).expect("small")).expect("a letter"))
    };
    let shown = (0..200).filter(|number| world.see(1, &names(*number), &long).shows()).count();
    assert!((70..90).contains(&shown), "{shown}: about 16 MiB of 200 kB each");
    assert!(world.0.bytes <= MAX_BYTES);
    // One that is known does not slip through because there is no room for its trace.
    let known = names(0);
    assert_eq!(world.call(1, &known), Ok(Listed::Yes));
    assert!(!world.see(1, &known, &"y".repeat(200_000)).shows());
    assert!(!world.see(1, "large", &"x".repeat(300_000)).shows());
}

#[test]
fn what_is_forgotten_comes_first_again() {
    let mut world = World::new(Trust::FirstUse);
    world.see(1, "read", "good");
    world.see(1, "read", "evil");
    assert!(world.0.forget(&Subject::Tool("read".to_owned())) && !world.0.forget(&Subject::Tool("read".to_owned())));
    assert_eq!(world.0.bytes, 0);
    assert_eq!(world.see(1, "Read", "new"), Verdict::Pinned(vec![]));
}

#[test]
fn the_books_are_right() {
    let mut world = World::new(Trust::FirstUse);
    let mut state = 7_u32;
    for _ in 0..5000 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let (name, text) = (
            format!("t{}", ["a", "b", "c", "d"][usize::try_from(state >> 8 & 3).expect("small")]),
            format!("d{}", state >> 12 & 7),
        );
        match state >> 20 & 7 {
            0 => drop(world.approve(&name, None, false)),
            1 => drop(world.approve(&name, Some(&digest(&name, &text)), true)),
            2 => drop(world.0.forget(&Subject::Tool(name))),
            _ => drop(world.see(1, &name, &text)),
        }
        let size: usize = world.0.tools.iter().map(|(name, pin)| name.len() + pin.size()).sum();
        assert_eq!(world.0.bytes, size);
    }
}

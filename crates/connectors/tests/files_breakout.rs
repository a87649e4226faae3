//! Break-out tests: what the `files` connector never serves, however it is asked.

mod common;

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{call, refusal, serve};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::json;
use sortie_connectors::files::{FilesConfig, FilesLimits, files};

const SECRET: &str = "TOP-SECRET-MARKER";

/// A directory to serve beside a secret that is not served.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("served")).expect("mkdir");
        fs::create_dir(dir.path().join("outside")).expect("mkdir");
        fs::write(dir.path().join("outside/secret.txt"), SECRET).expect("write");
        Self { dir }
    }

    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("served")
    }

    fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
        fs::write(path, text).expect("write");
    }
}

/// No tool gives the marker or the place of the directory away.
async fn nothing_leaks(place: &Place) {
    let service = serve(&place.root());
    let listed = call(&service, "list", json!({"depth": 8})).await;
    let found = call(&service, "search", json!({"query": SECRET})).await;
    for outcome in [listed, found] {
        assert!(!outcome.is_error, "{}", outcome.text);
        for text in [outcome.text, outcome.structured.to_string()] {
            assert!(!text.contains(place.dir.path().to_str().expect("UTF-8")), "{text}");
            assert!(!text.contains(SECRET), "{text}");
        }
    }
}

#[tokio::test]
async fn dot_dot_absolute_and_odd_paths_are_refused_by_rule() {
    let place = Place::new();
    place.write("a.txt", "hello");
    let service = serve(&place.root());
    let absolute = place.dir.path().join("outside/secret.txt");
    for (path, rule) in [
        ("..", "upwards"),
        ("../outside/secret.txt", "upwards"),
        ("x/../../outside/secret.txt", "upwards"),
        ("./../outside", "upwards"),
        ("/etc/passwd", "absolute"),
        (absolute.to_str().expect("UTF-8"), "absolute"),
        ("//a.txt", "absolute"),
        ("a.txt\0/../..", "NUL"),
        ("a.txt/x", "not a directory"),
        ("missing", "does not exist"),
        ("", "is a directory"),
    ] {
        let text = refusal(&service, "read", json!({"path": path})).await;
        assert!(text.contains(rule), "{path}: {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    for (tool, arguments) in [("list", json!({"path": "../outside"})), ("search", json!({"path": "..", "query": "x"}))]
    {
        let text = refusal(&service, tool, arguments).await;
        assert!(text.contains("upwards"), "{text}");
    }
    nothing_leaks(&place).await;
}

#[tokio::test]
async fn links_that_leave_are_refused_and_links_that_stay_are_followed() {
    let place = Place::new();
    let root = place.root();
    place.write("docs/real.txt", "inside");
    symlink("/etc", root.join("etc")).expect("link");
    symlink("/etc/passwd", root.join("passwd.txt")).expect("link");
    symlink("../outside", root.join("up")).expect("link");
    symlink("../outside/secret.txt", root.join("secret.txt")).expect("link");
    symlink("secret.txt", root.join("chain1.txt")).expect("link");
    symlink("docs/../chain1.txt", root.join("chain2.txt")).expect("link");
    symlink(root.join("docs"), root.join("absolute-inside")).expect("link");
    symlink("docs/../../served/docs/real.txt", root.join("out-and-in.txt")).expect("link");
    symlink("loop2", root.join("loop1")).expect("link");
    symlink("loop1", root.join("loop2")).expect("link");
    symlink(".", root.join("docs/self")).expect("link");
    symlink("docs/self/self/real.txt", root.join("inside.txt")).expect("link");
    symlink("../docs", root.join("docs/again")).expect("link");

    let service = serve(&root);
    for path in [
        "etc/passwd",
        "passwd.txt",
        "up/secret.txt",
        "secret.txt",
        "chain1.txt",
        "chain2.txt",
        "absolute-inside/real.txt",
        "out-and-in.txt",
    ] {
        let text = refusal(&service, "read", json!({"path": path})).await;
        assert!(text.contains("leaves the served directory"), "{path}: {text}");
    }
    let text = refusal(&service, "read", json!({"path": "loop1"})).await;
    assert!(text.contains("too many symbolic links"), "{text}");
    for path in ["docs/real.txt", "inside.txt", "docs/self/self/self/real.txt", "docs/again/real.txt"] {
        let outcome = call(&service, "read", json!({"path": path})).await;
        assert_eq!(outcome.structured["text"], "inside", "{path}: {}", outcome.text);
    }
    let listed = call(&service, "list", json!({"depth": 8})).await.structured.to_string();
    for absent in ["etc", "passwd", "up", "secret", "chain", "absolute", "out-and-in", "loop"] {
        assert!(!listed.contains(absent), "{absent}: {listed}");
    }
    assert!(listed.contains("inside.txt") && listed.contains("docs/self"), "{listed}");
    nothing_leaks(&place).await;
}

#[tokio::test]
async fn a_link_to_a_name_that_is_not_served_is_not_served() {
    let place = Place::new();
    place.write(".hidden/note.txt", SECRET);
    place.write(".env", SECRET);
    place.write("tls/server.key", SECRET);
    place.write("id_rsa", SECRET);
    place.write("credentials.json", SECRET);
    place.write("x/.git/config", SECRET);
    symlink(".hidden/note.txt", place.root().join("note.txt")).expect("link");
    symlink(".hidden", place.root().join("open")).expect("link");
    symlink("tls/server.key", place.root().join("server.txt")).expect("link");
    symlink("x/.git/../.git/config", place.root().join("config.txt")).expect("link");
    let service = serve(&place.root());
    for path in [".hidden/note.txt", ".env", "x/.git/config", "note.txt", "open/note.txt", "config.txt", "open"] {
        let text = refusal(&service, "read", json!({"path": path})).await;
        assert!(text.contains("begins with a dot"), "{path}: {text}");
    }
    for path in ["tls/server.key", "id_rsa", "ID_RSA", "credentials.json", "server.txt"] {
        let text = refusal(&service, "read", json!({"path": path})).await;
        assert!(text.contains("key or credential"), "{path}: {text}");
        let text = refusal(&service, "search", json!({"path": path, "query": "a"})).await;
        assert!(text.contains("key or credential"), "{path}: {text}");
    }
    let text = refusal(&service, "list", json!({"path": ".hidden"})).await;
    assert!(text.contains("begins with a dot"), "{text}");
    nothing_leaks(&place).await;
}

#[tokio::test]
async fn a_private_key_under_another_name_is_not_served() {
    let place = Place::new();
    let key = format!("-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----\n");
    place.write("notes.txt", &key);
    place.write("account.json", format!("{{\"private_key\": \"-----BEGIN PRIVATE KEY-----\\n{SECRET}\"}}"));
    place.write("bundle.crt", format!("{}{key}", "-----BEGIN CERTIFICATE-----\nAAAA\n".repeat(20_000)));
    place.write("public.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let service = serve(&place.root());
    for arguments in [
        json!({"path": "notes.txt"}),
        json!({"path": "notes.txt", "offset_line": 2}),
        json!({"path": "account.json"}),
        json!({"path": "bundle.crt", "offset_line": 40_002}),
    ] {
        let text = refusal(&service, "read", arguments.clone()).await;
        assert!(text.contains("contains a private key"), "{arguments}: {text}");
    }
    let text = refusal(&service, "search", json!({"path": "notes.txt", "query": "TOP"})).await;
    assert!(text.contains("contains a private key"), "{text}");
    assert!(!call(&service, "read", json!({"path": "public.crt"})).await.is_error);
    nothing_leaks(&place).await;
}

#[tokio::test]
async fn pipes_sockets_and_their_links_neither_hang_nor_serve() {
    let place = Place::new();
    let root = place.root();
    mknodat(CWD, root.join("pipe.txt"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("mkfifo");
    let _listener = UnixListener::bind(root.join("socket.txt")).expect("bind");
    symlink("pipe.txt", root.join("to-pipe.txt")).expect("link");
    symlink("/dev/zero", root.join("zero.txt")).expect("link");
    place.write("plain.txt", "plain");
    let service = serve(&root);
    let started = Instant::now();
    for path in ["pipe.txt", "socket.txt", "to-pipe.txt"] {
        for tool in ["read", "search"] {
            let arguments = if tool == "read" { json!({"path": path}) } else { json!({"path": path, "query": "x"}) };
            let text = refusal(&service, tool, arguments).await;
            assert!(text.contains("neither a file nor a directory"), "{path}: {text}");
        }
    }
    refusal(&service, "read", json!({"path": "zero.txt"})).await;
    let listed = call(&service, "list", json!({})).await;
    assert_eq!(listed.structured["entries"].as_array().map(Vec::len), Some(1), "{}", listed.text);
    assert_eq!(call(&service, "search", json!({"query": "plain"})).await.structured["files_searched"], 1);
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_change_during_the_walk_never_lead_out() {
    let place = Place::new();
    let root = place.root();
    place.write("real/secret.txt", "inside");
    place.write("file.txt", "inside");
    let done = Arc::new(AtomicBool::new(false));
    let swapper = std::thread::spawn({
        let (root, done) = (root.clone(), Arc::clone(&done));
        move || {
            let (door, spare) = (root.join("door"), root.join("spare"));
            while !done.load(Ordering::Relaxed) {
                // A directory, then a link to the outside, under the same name; and a file likewise.
                let _ = symlink("../outside", &door);
                let _ = fs::remove_file(&door);
                let _ = fs::rename(root.join("real"), &door);
                let _ = fs::rename(&door, root.join("real"));
                let _ = symlink("../outside/secret.txt", &spare);
                let _ = fs::rename(&spare, root.join("file.txt"));
                let _ = fs::write(&spare, "inside");
                let _ = fs::rename(&spare, root.join("file.txt"));
            }
        }
    });
    let service = serve(&root);
    let mut served = 0;
    for round in 0..400 {
        let outcome = match round % 4 {
            0 => call(&service, "read", json!({"path": "door/secret.txt"})).await,
            1 => call(&service, "read", json!({"path": "file.txt"})).await,
            2 => call(&service, "search", json!({"query": "s"})).await,
            _ => call(&service, "list", json!({"depth": 8})).await,
        };
        assert!(!outcome.text.contains(SECRET), "{}", outcome.text);
        assert!(!outcome.structured.to_string().contains(SECRET));
        served += u32::from(!outcome.is_error);
    }
    done.store(true, Ordering::Relaxed);
    swapper.join().expect("the swapper ends");
    assert!(served > 0);
}

#[tokio::test]
async fn hard_names_are_served_and_stay_on_their_line() {
    let place = Place::new();
    let names = ["größe 日本 🙂.txt", "new\nline.txt", "quote\"back\\slash.txt", "-rf", "%2e%2e", "a:b*c?.txt"];
    for name in names {
        place.write(name, "needle");
    }
    fs::write(place.root().join(std::ffi::OsStr::from_bytes(b"bad-\xff.txt")), "needle").expect("write");
    let service = serve(&place.root());
    let listed = call(&service, "list", json!({})).await;
    assert_eq!(listed.structured["entries"].as_array().map(Vec::len), Some(names.len()));
    assert!(listed.text.contains("1 entries are left out: their names are not UTF-8"), "{}", listed.text);
    assert_eq!(listed.text.trim_end().lines().count(), names.len() + 1, "{}", listed.text);
    for name in names {
        assert_eq!(call(&service, "read", json!({"path": name})).await.structured["text"], "needle", "{name:?}");
    }
    let found = call(&service, "search", json!({"query": "NEEDLE"})).await;
    assert_eq!(found.structured["matches"].as_array().map(Vec::len), Some(names.len()));
    assert_eq!(found.text.trim_end().lines().count(), names.len() + 1, "{}", found.text);
    let text = refusal(&service, "read", json!({"path": "no\nsuch"})).await;
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[tokio::test]
async fn huge_files_come_in_bounded_parts() {
    let place = Place::new();
    let text: String = (1..=60_000).map(|n| format!("line {n}\n")).collect();
    place.write("long.txt", &text);
    place.write("one-line.txt", "ä".repeat(400_000));
    fs::File::create(place.root().join("sparse.bin")).expect("create").set_len(1 << 40).expect("1 TiB of holes");
    let service = serve(&place.root());

    let (mut whole, mut next, mut parts) = (String::new(), 1, 0);
    loop {
        let part = call(&service, "read", json!({"path": "long.txt", "offset_line": next})).await;
        let text = part.structured["text"].as_str().expect("text").to_owned();
        assert!(text.len() <= 256 * 1024);
        whole.push_str(&text);
        parts += 1;
        match part.structured["next_line"].as_u64() {
            Some(line) => {
                assert!(part.text.ends_with(&format!("(there is more: go on with `offset_line` {line})")));
                next = line;
            }
            None => break,
        }
    }
    assert_eq!(whole, text);
    assert!(parts > 1);

    let part = call(&service, "read", json!({"path": "one-line.txt"})).await;
    assert!(part.text.contains("the rest of it is left out"));
    let part = call(&service, "read", json!({"path": "long.txt", "offset_line": 10, "limit_lines": 2})).await;
    assert_eq!(part.structured["text"], "line 10\nline 11\n");
    assert_eq!(part.structured["next_line"], 12);
    let text = refusal(&service, "read", json!({"path": "long.txt", "offset_line": 60_001})).await;
    assert!(text.contains("60000 lines"), "{text}");
    assert!(refusal(&service, "read", json!({"path": "sparse.bin"})).await.contains("not UTF-8 text"));

    let small = FilesLimits { read_bytes: 1001, ..FilesLimits::default() };
    let service = files(FilesConfig { root: place.root(), limits: small }).expect("service");
    let text = refusal(&service, "read", json!({"path": "long.txt", "offset_line": 5000})).await;
    assert!(text.contains("beyond the first 1001 bytes"), "{text}");
    let part = call(&service, "read", json!({"path": "one-line.txt"})).await;
    assert_eq!(part.structured["text"].as_str().map(str::len), Some(1000), "{}", part.text);
    let part = call(&service, "read", json!({"path": "long.txt"})).await;
    assert!(part.text.contains("read up to 1001 bytes"), "{}", part.text);
}

#[tokio::test]
async fn binary_files_are_refused_and_passed_over() {
    let place = Place::new();
    place.write("elf", b"\x7fELF\0\0needle");
    place.write("latin1.txt", b"caf\xe9 needle\n");
    place.write("late-nul.txt", [vec![b'\n'; 20_000], b"a\0b".to_vec()].concat());
    let service = serve(&place.root());
    for path in ["elf", "latin1.txt", "late-nul.txt"] {
        let text = refusal(&service, "read", json!({"path": path})).await;
        assert!(text.contains("not UTF-8 text"), "{path}: {text}");
    }
    let found = call(&service, "search", json!({"query": "needle"})).await;
    assert_eq!(found.structured["matches"][0]["path"], "latin1.txt");
    assert_eq!(found.structured["matches"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_directory_of_100_000_entries_is_bounded() {
    let place = Place::new();
    for n in 0..100_000 {
        fs::File::create(place.root().join(format!("f{n:06}.txt"))).expect("create");
    }
    // The other bounds are met first, also on a busy machine.
    let limits = FilesLimits { call_time: Duration::from_secs(60), ..FilesLimits::default() };
    let service = files(FilesConfig { root: place.root(), limits }).expect("service");
    let started = Instant::now();
    let listed = call(&service, "list", json!({"depth": 8})).await;
    assert_eq!(listed.structured["entries"].as_array().map(Vec::len), Some(1000));
    assert_eq!(listed.structured["truncated"], true);
    assert!(listed.text.contains("at most 1000 entries"));
    let found = call(&service, "search", json!({"query": "x"})).await;
    assert_eq!(found.structured["truncated"], true);
    assert!(found.text.contains("no more than 20000 files"), "{}", found.text);
    let found = call(&service, "search", json!({"query": "x", "glob": "f099*"})).await;
    assert_eq!(found.structured["truncated"], false, "{}", found.text);
    assert_eq!(found.structured["files_searched"], 1000);
    assert!(started.elapsed() < Duration::from_secs(60));
}

#[tokio::test]
async fn deep_trees_are_bounded() {
    let place = Place::new();
    let deep = vec!["d"; 100].join("/");
    place.write(&format!("{deep}/bottom.txt"), "needle");
    let service = serve(&place.root());
    assert!(refusal(&service, "list", json!({"depth": 9})).await.contains("from 1 to 8"));
    let listed = call(&service, "list", json!({"depth": 8})).await;
    assert_eq!(listed.structured["entries"].as_array().map(Vec::len), Some(8));
    let found = call(&service, "search", json!({"query": "needle"})).await;
    assert_eq!(found.structured["truncated"], true);
    assert!(found.text.contains("deeper than 64"), "{}", found.text);
    let found = call(&service, "search", json!({"query": "needle", "path": vec!["d"; 50].join("/")})).await;
    assert_eq!(found.structured["matches"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        call(&service, "read", json!({"path": format!("{deep}/bottom.txt")})).await.structured["text"],
        "needle"
    );
}

#[tokio::test]
async fn patterns_that_would_hold_the_server_are_refused_or_quick() {
    let place = Place::new();
    place.write("a.txt", "a".repeat(500_000));
    let service = serve(&place.root());
    let ask = |query: &str| json!({"query": query, "regex": true});
    for bomb in ["(((a{100}){100}){100}){100}", "(", "a{1000000}", r"(\w{400}){400}"] {
        let text = refusal(&service, "search", ask(bomb)).await;
        assert!(text.contains("cannot be searched for"), "{text}");
    }
    let started = Instant::now();
    let found = call(&service, "search", ask("(a+)+$|(a|aa)+b")).await;
    assert!(!found.is_error, "{}", found.text);
    assert!(started.elapsed() < Duration::from_secs(8));
    let text = refusal(&service, "search", json!({"query": "a", "glob": "["})).await;
    assert!(text.contains("glob"), "{text}");
    assert!(refusal(&service, "search", json!({"query": "a", "max_results": 201})).await.contains("from 1 to 200"));
}

#[tokio::test]
async fn the_call_time_bounds_a_search() {
    let place = Place::new();
    for n in 0..50 {
        place.write(&format!("{n}.txt"), "x\n".repeat(10_000));
    }
    let limits = FilesLimits { call_time: Duration::from_millis(1), ..FilesLimits::default() };
    let service = files(FilesConfig { root: place.root(), limits }).expect("service");
    let found = call(&service, "search", json!({"query": "needle"})).await;
    assert_eq!(found.structured["truncated"], true);
    assert!(found.text.contains("takes no longer than"), "{}", found.text);
}

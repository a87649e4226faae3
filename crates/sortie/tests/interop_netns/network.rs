//! Two networks, outside and inside, as network namespaces joined by one line. Inside lets nothing in, and out only to
//! the hub. Everything happens between addresses in namespaces of our own; all of it is gone with the value.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use sortie_testkit::{Program, TempHome, skip_host, skip_tool};

/// The hub's address, outside.
pub(crate) const HUB: &str = "10.98.7.1";
/// The inside's address on the line.
pub(crate) const GATEWAY: &str = "10.98.7.2";
/// An address that only the inside has: the private MCP server's.
pub(crate) const PRIVATE: &str = "10.99.7.2";
/// Where the hub's API and its edge listen.
pub(crate) const API_PORT: u16 = 8443;
/// See [`API_PORT`].
pub(crate) const EDGE_PORT: u16 = 443;
/// Where a proxy listens beside them.
pub(crate) const PROXY_PORT: u16 = 3128;

/// The two networks.
pub(crate) struct Network {
    outside: String,
    inside: String,
}

impl Network {
    /// Builds both, or says why this machine cannot. The inside may dial these ports of the hub's address, and no other.
    pub(crate) fn build(ports: &[u16]) -> Option<Self> {
        for program in ["ip", "nft", "curl"] {
            if Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
                skip_tool(&format!("there is no `{program}`; `cargo xtask test` installs it for root"));
                return None;
            }
        }
        static BUILT: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}-{}", std::process::id(), BUILT.fetch_add(1, Ordering::Relaxed));
        let network = Self { outside: format!("sortie-{id}-outside"), inside: format!("sortie-{id}-inside") };
        for step in network.steps() {
            if let Err(reason) = done(Command::new("ip").args(step.split_ascii_whitespace())) {
                skip_host(&format!("no network namespaces: `ip {step}`: {reason}"));
                return None;
            }
        }
        let mut rules = network.command(&network.inside, "nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn();
        let written = rules.as_mut().ok().and_then(|nft| {
            let text = rules_text(ports);
            nft.stdin.take().map(|mut input| input.write_all(text.as_bytes()))
        });
        let passed = rules.and_then(|mut nft| nft.wait());
        if !matches!(written, Some(Ok(()))) || !passed.is_ok_and(|status| status.success()) {
            skip_host("no packet filter with connection tracking in a network namespace");
            return None;
        }
        Some(network)
    }

    fn steps(&self) -> Vec<String> {
        let (outside, inside) = (&self.outside, &self.inside);
        vec![
            format!("netns add {outside}"),
            format!("netns add {inside}"),
            format!("link add line0 netns {outside} type veth peer name line0 netns {inside}"),
            format!("-n {outside} link set lo up"),
            format!("-n {inside} link set lo up"),
            format!("-n {outside} addr add {HUB}/24 dev line0"),
            format!("-n {inside} addr add {GATEWAY}/24 dev line0"),
            format!("-n {inside} addr add {PRIVATE}/32 dev lo"),
            format!("-n {outside} link set line0 up"),
            format!("-n {inside} link set line0 up"),
            // The way to the private address is known outside; only the inside's rules stand in it.
            self.route_to_private(),
        ]
    }

    fn route_to_private(&self) -> String {
        format!("-n {} route replace {PRIVATE}/32 via {GATEWAY}", self.outside)
    }

    /// A program that runs outside, as this user in this home.
    pub(crate) fn outside(&self, home: &TempHome, program: impl AsRef<Path>) -> Program {
        home.apply(Program::new("ip")).args(["netns", "exec", &self.outside]).arg(program.as_ref())
    }

    /// A program that runs inside.
    pub(crate) fn inside(&self, home: &TempHome, program: impl AsRef<Path>) -> Program {
        home.apply(Program::new("ip")).args(["netns", "exec", &self.inside]).arg(program.as_ref())
    }

    /// A short command outside.
    pub(crate) fn ask_outside(&self, program: &str, args: &[&str]) -> Output {
        self.command(&self.outside, program).args(args).stdin(Stdio::null()).output().expect("runs")
    }

    /// A short command inside.
    pub(crate) fn ask_inside(&self, program: &str, args: &[&str]) -> Output {
        self.command(&self.inside, program).args(args).stdin(Stdio::null()).output().expect("runs")
    }

    fn command(&self, namespace: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, program]);
        command
    }

    /// Cuts the line, or joins it again.
    pub(crate) fn line(&self, up: bool) {
        let state = if up { "up" } else { "down" };
        done(Command::new("ip").args(["-n", &self.outside, "link", "set", "line0", state])).expect("line");
        if up {
            let route = self.route_to_private();
            done(Command::new("ip").args(route.split_ascii_whitespace())).expect("route");
        }
    }

    /// From now on swallows what is said over TCP to and from this port outside, be it within one machine.
    pub(crate) fn swallow_outside(&self, port: u16) {
        self.swallow(&self.outside, port);
    }

    /// The same inside.
    pub(crate) fn swallow_inside(&self, port: u16) {
        self.swallow(&self.inside, port);
    }

    fn swallow(&self, namespace: &str, port: u16) {
        let rules = format!(
            "table inet swallow {{
                chain input {{
                    type filter hook input priority -10; policy accept;
                    tcp dport {port} drop
                    tcp sport {port} drop
                }}
            }}"
        );
        done(self.command(namespace, "nft").arg(rules)).expect("rules");
    }

    /// Packets that the inside's rules counted under this name.
    pub(crate) fn counted(&self, name: &str) -> u64 {
        let output = self.ask_inside("nft", &["-j", "list", "counter", "inet", "guard", name]);
        let listed: Value = serde_json::from_slice(&output.stdout).expect("nft prints JSON");
        let counters = listed.pointer("/nftables").and_then(Value::as_array).expect("a list");
        let packets = counters.iter().find_map(|one| one.pointer("/counter/packets")?.as_u64());
        packets.unwrap_or_else(|| panic!("no counter {name}: {listed}"))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in [&self.inside, &self.outside] {
            // Whoever is still in there was started by this test, and keeps the namespace alive.
            if let Ok(found) = Command::new("ip").args(["netns", "pids", namespace]).output() {
                for pid in String::from_utf8_lossy(&found.stdout).split_ascii_whitespace() {
                    let _ended = Command::new("kill").args(["-KILL", pid]).status();
                }
            }
            let _gone = Command::new("ip").args(["netns", "del", namespace]).stderr(Stdio::null()).status();
        }
    }
}

/// The second chain sees only what the first let through.
fn rules_text(ports: &[u16]) -> String {
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    let ports = ports.join(", ");
    format!(
        "table inet guard {{
            counter new_inbound {{}}
            counter refused_inbound {{}}
            counter refused_outbound {{}}
            chain input {{
                type filter hook input priority 0; policy drop;
                iif lo accept
                ct state established,related accept
                meta l4proto {{ tcp, udp }} counter name refused_inbound
            }}
            chain passed {{
                type filter hook input priority 10; policy accept;
                iif != lo ct state new counter name new_inbound
            }}
            chain output {{
                type filter hook output priority 0; policy drop;
                oif lo accept
                ip daddr {HUB} tcp dport {{ {ports} }} accept
                meta l4proto {{ tcp, udp }} counter name refused_outbound
            }}
        }}"
    )
}

fn done(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}

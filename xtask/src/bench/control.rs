//! What the gateway's decisions about a call cost, and their record: the same route bare, with identities, with policies,
//! with a credential, with an audit, and with all of it, each at a gateway of its own behind one hub.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use sortie_testkit::Process;
use sortie_testkit::usage::rss_kb;

use super::backends::{self, release};
use super::ours::{Hub, Key, LOOPBACK, Tunnel, route};
use super::report::Memory;
use super::targets::{Fleet, Headers, float};
use crate::repo::Repo;
use crate::tools::Peers;

/// Callers where there are many.
const CALLERS: usize = 1000;
/// The numbers of connections, each with sessions of its own.
const CONNECTIONS: &[usize] = &[8];
/// The target that one caller's are compared with.
const BARE: &str = "bare route";
/// The target that many callers' are compared with.
const BARE_MANY: &str = "bare route, 1000 callers";

/// The identity provider's name.
const IDP: &str = "https://idp.bench";
/// The header that its tokens come in.
const TOKEN: &str = "x-caller-token";

/// One gateway and what is measured at it.
struct Variant {
    /// The folder of its files.
    folder: &'static str,
    /// Its name when one caller calls, and what that is compared with.
    one: (&'static str, Option<&'static str>),
    /// The same when many do.
    many: Option<(&'static str, Option<&'static str>)>,
    with: With,
}

/// What is switched on.
#[derive(Clone, Copy)]
struct With {
    identity: bool,
    /// So many policies.
    policies: Option<usize>,
    credential: bool,
    audit: Audit,
}

/// The audit, which is on unless it is switched off.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Audit {
    Off,
    /// A record is kept when the kernel has it.
    Process,
    /// A record is kept when the disk has it.
    Power,
}

const VARIANTS: [Variant; 9] = [
    Variant {
        folder: "bare",
        one: (BARE, None),
        many: Some((BARE_MANY, Some(BARE))),
        with: With { identity: false, policies: None, credential: false, audit: Audit::Off },
    },
    Variant {
        folder: "identity",
        one: ("+ identity", Some(BARE)),
        many: Some(("+ identity, 1000 callers", Some(BARE_MANY))),
        with: With { identity: true, policies: None, credential: false, audit: Audit::Off },
    },
    Variant {
        folder: "policy-1",
        one: ("+ 1 policy", Some(BARE)),
        many: None,
        with: With { identity: false, policies: Some(1), credential: false, audit: Audit::Off },
    },
    Variant {
        folder: "policy-100",
        one: ("+ 100 policies", Some("+ 1 policy")),
        many: None,
        with: With { identity: false, policies: Some(100), credential: false, audit: Audit::Off },
    },
    Variant {
        folder: "policy-10000",
        one: ("+ 10000 policies", Some("+ 1 policy")),
        many: Some(("+ 10000 policies, 1000 callers", Some(BARE_MANY))),
        with: With { identity: false, policies: Some(10_000), credential: false, audit: Audit::Off },
    },
    Variant {
        folder: "credential",
        one: ("+ credential", Some(BARE)),
        many: None,
        with: With { identity: false, policies: None, credential: true, audit: Audit::Off },
    },
    Variant {
        folder: "audit",
        one: ("+ audit", Some(BARE)),
        many: Some(("+ audit, 1000 callers", Some(BARE_MANY))),
        with: With { identity: false, policies: None, credential: false, audit: Audit::Process },
    },
    Variant {
        folder: "audit-power",
        one: ("+ audit, power", Some(BARE)),
        many: None,
        with: With { identity: false, policies: None, credential: false, audit: Audit::Power },
    },
    Variant {
        folder: "all",
        one: ("all, 10000 policies", Some(BARE)),
        many: Some(("all, 10000 policies, 1000 callers", Some(BARE_MANY))),
        with: With { identity: true, policies: Some(10_000), credential: true, audit: Audit::Process },
    },
];

/// The memory of a process, read before all rounds.
#[derive(Debug)]
pub(crate) struct Held {
    name: String,
    pids: Vec<u32>,
    before: f64,
}

impl Held {
    fn by(name: &str, process: &Process) -> Self {
        let pids = process.pids();
        Self { name: name.to_owned(), before: mib(&pids), pids }
    }

    /// With what is held now.
    pub(crate) fn now(&self) -> Memory {
        Memory { process: self.name.clone(), before_mib: self.before, after_mib: mib(&self.pids) }
    }
}

fn mib(pids: &[u32]) -> f64 {
    float(rss_kb(pids)) / 1024.0
}

/// Starts what is wanted: `only` narrows the targets that are neither direct nor bare.
pub(crate) async fn start(repo: &Repo, peers: &Peers, only: Option<&str>) -> Result<(Fleet, Vec<Held>)> {
    let dir = tempfile::tempdir().context("a temporary folder")?;
    let echo_program = release(&repo.target, "mcp-echo");
    let echo = backends::mcp_echo(&echo_program, dir.path()).await?;
    let upstream = vec![echo.process.id()];
    let mut fleet = Fleet::default();
    fleet.add_mcp("direct", format!("http://{}/mcp", echo.addr), None, (vec![], upstream.clone())).await;
    fleet.bridges(peers, &echo_program, only).await;
    for target in &mut fleet.targets {
        target.connections = CONNECTIONS;
    }

    let wanted = |name: &str| [BARE, BARE_MANY].contains(&name) || only.is_none_or(|only| name.contains(only));
    let hub = Hub::start(&release(&repo.target, "sortie"), dir.path()).await?;
    let mut tunnels = Vec::new();
    for variant in &VARIANTS {
        tunnels.push(hub.tunnel(variant.folder).await?);
    }
    let mut keys = Vec::new();
    for number in 0..CALLERS {
        keys.push(hub.key(&format!("caller {number}"), &tunnels).await?);
    }
    let idp = Idp::new()?;
    let mut held = vec![Held::by("hub", &hub.process)];
    for (variant, tunnel) in VARIANTS.iter().zip(&tunnels) {
        let names = [Some(variant.one), variant.many];
        if !names.iter().flatten().any(|(name, _)| wanted(name)) {
            continue;
        }
        let settings = variant.with.settings(echo.addr, tunnel, &keys, &idp)?;
        let gateway = hub.gateway(tunnel, &settings).await;
        let Some(gateway) = fleet.keep(variant.one.0, gateway) else { continue };
        held.push(Held::by(&format!("gateway, {}", variant.one.0), &gateway));
        let callers: Vec<Headers> = keys.iter().map(|key| variant.with.headers(key, &idp)).collect();
        let url = format!("{}/echo/mcp", tunnel.routes_url);
        for ((name, base), callers) in
            names.into_iter().zip([callers.get(..1), callers.get(..)]).filter_map(|(name, callers)| name.zip(callers))
        {
            if wanted(name) {
                let processes = (vec![hub.process.id(), gateway.id()], upstream.clone());
                fleet.add_callers(name, &url, callers, processes, CONNECTIONS).await;
                if let Some(target) = fleet.targets.last_mut().filter(|target| target.name == name) {
                    target.base = base;
                }
            }
        }
        fleet.others.push(gateway);
    }
    fleet.others.extend([hub.process, echo.process]);
    fleet.dir = Some(dir);
    Ok((fleet, held))
}

impl With {
    /// The gateway's settings; writes the files that they name.
    fn settings(self, echo: SocketAddr, tunnel: &Tunnel, keys: &[Key], idp: &Idp) -> Result<String> {
        let write = |name: &str, text: &str| {
            let file = tunnel.dir.join(name);
            let mut options = fs::OpenOptions::new();
            let opened = options.write(true).create(true).truncate(true).mode(0o600).open(&file);
            opened.and_then(|mut opened| opened.write_all(text.as_bytes())).with_context(|| file.display().to_string())
        };
        let (mut first, mut last) = (String::new(), LOOPBACK.to_owned() + &route("echo", echo));
        if self.identity {
            last.push_str("identity = \"signed\"\n");
            write("issuer.jwks", &idp.keys())?;
        }
        if let Some(count) = self.policies {
            let name = |key: &Key| match self.identity {
                true => format!("{IDP}#{}", key.id),
                false => format!("{}#key:{}", tunnel.issuer, key.id),
            };
            let callers: Vec<String> = keys.iter().map(name).collect();
            write("policy.toml", &policies(count, &callers))?;
            first.push_str("policy = \"enforce\"\npolicy_file = \"policy.toml\"\n");
        }
        if self.credential {
            write("secret", "s3cret")?;
            last.push_str(
                "[[routes.echo.credentials]]\nname = \"echo\"\nkind = \"bearer\"\nsecret = { file = \"secret\" }\n",
            );
        }
        if self.identity {
            last.push_str(&format!(
                "[[issuers]]\nissuer = \"{IDP}\"\njwks_file = \"issuer.jwks\"\nheader = \"{TOKEN}\"\nprefix = \"\"\n\
                 audiences = [\"bench\"]\nmax_lifetime = \"24h\"\n"
            ));
        }
        last.push_str(match self.audit {
            Audit::Off => "[audit]\nenabled = false\n",
            Audit::Process => "[audit]\ndurability = \"process\"\n",
            Audit::Power => "[audit]\ndurability = \"power\"\n",
        });
        Ok(first + &last)
    }

    /// What a caller sends to be known.
    fn headers(self, key: &Key, idp: &Idp) -> Headers {
        let mut headers = vec![("x-api-key", key.secret.clone())];
        if self.identity {
            headers.push((TOKEN, idp.token(&key.id)));
        }
        headers
    }
}

/// An identity provider whose tokens callers send.
struct Idp {
    pair: Ed25519KeyPair,
    now: u64,
}

impl Idp {
    fn new() -> Result<Self> {
        let pair = Ed25519KeyPair::generate().ok().context("a signing key")?;
        Ok(Self { pair, now: UNIX_EPOCH.elapsed().context("the clock")?.as_secs() })
    }

    /// Its key set (RFC 7517, RFC 8037).
    fn keys(&self) -> String {
        let x = URL_SAFE_NO_PAD.encode(self.pair.public_key());
        json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "kid": "bench", "x": x }] }).to_string()
    }

    /// A token that lasts longer than any benchmark.
    fn token(&self, subject: &str) -> String {
        let head = json!({ "alg": "EdDSA", "typ": "JWT", "kid": "bench" });
        let (from, to) = (self.now, self.now + 12 * 3600);
        let claims = json!({ "iss": IDP, "sub": subject, "aud": "bench", "iat": from, "exp": to });
        let signed = [head, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
        let signature = URL_SAFE_NO_PAD.encode(self.pair.sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }
}

/// So many rules, in turn for each caller. The first of each caller is for the tool that is called, the others are for
/// tools that nobody calls.
fn policies(count: usize, callers: &[String]) -> String {
    let mut text = String::new();
    let rounds = (0..).map(|round| if round == 0 { "echo".to_owned() } else { format!("tool-{round}") });
    for (caller, tool) in rounds.flat_map(|tool| callers.iter().map(move |caller| (caller, tool.clone()))).take(count) {
        text.push_str(&format!("[[allow]]\ncallers = [\"{caller}\"]\nroutes = [\"echo\"]\ntools = [\"{tool}\"]\n"));
    }
    text
}

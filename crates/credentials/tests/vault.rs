//! Secrets of a vault: logins, leases, rotation, and what happens while the vault does not answer.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use http::HeaderMap;
use serde_json::json;
use sortie_credentials::{
    Applied, Certificate, CertificateAt, Credential, CredentialError, CredentialKind, CredentialSpec, Source, Trust,
    Username, Vault, VaultAuth, VaultSecret, VaultSpec,
};
use sortie_runtime::TaskSet;
use sortie_testkit::VaultServer;
use sortie_testkit::vault::ROLE_ID;
use sortie_tls::{Authority, ReloadingIdentity, ServerIdentity};

const SOON: Duration = Duration::from_secs(20);

struct World {
    server: VaultServer,
    vault: Arc<Vault>,
    dir: tempfile::TempDir,
    tasks: TaskSet,
}

impl World {
    async fn start(prepare: impl FnOnce(&VaultServer)) -> Self {
        Self::start_with(prepare, |file| VaultAuth::AppRole {
            mount: "approle".to_owned(),
            role_id: ROLE_ID.to_owned(),
            secret_id: Source::File(file.to_owned()),
        })
        .await
    }

    async fn start_with(prepare: impl FnOnce(&VaultServer), auth: impl FnOnce(&Path) -> VaultAuth) -> Self {
        let server = VaultServer::start().await.expect("vault");
        prepare(&server);
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("secret-id");
        let secret_id = server.state().secret_id.clone();
        private(&file, &secret_id);
        let tasks = TaskSet::new();
        let spec = VaultSpec {
            name: "corp".to_owned(),
            address: server.url().parse().expect("url"),
            namespace: server.state().namespace.clone(),
            auth: auth(&file),
            trust: Trust::default(),
        };
        let vault = Arc::new(Vault::start(spec, &tasks).expect("vault"));
        Self { server, vault, dir, tasks }
    }

    fn credential(&self, kind: impl FnOnce(Source) -> CredentialKind, path: &str, field: &str) -> Credential {
        let refresh = Duration::from_millis(300);
        let (server, path, field) = ("corp".to_owned(), path.to_owned(), field.to_owned());
        let kind = kind(Source::Vault(VaultSecret { server, path, field, refresh, parameters: BTreeMap::new() }));
        let vaults = BTreeMap::from([("corp".to_owned(), self.vault.clone())]);
        Credential::start(CredentialSpec { name: "wiki".to_owned(), kind }, &vaults, &self.tasks).expect("credential")
    }

    /// A certificate of this path; made there, where there are parameters.
    fn certificate(&self, path: &str, parameters: &[(&str, &str)]) -> Credential {
        let parameters = parameters.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let (server, path, field) = ("corp".to_owned(), path.to_owned(), "private_key".to_owned());
        let secret =
            Source::Vault(VaultSecret { server, path, field, refresh: Duration::from_millis(300), parameters });
        let certificate = CertificateAt::Field("certificate".to_owned());
        let kind = CredentialKind::ClientCertificate { certificate, secret };
        let vaults = BTreeMap::from([("corp".to_owned(), self.vault.clone())]);
        Credential::start(CredentialSpec { name: "wiki".to_owned(), kind }, &vaults, &self.tasks).expect("credential")
    }

    fn bearer(&self, path: &str) -> Credential {
        self.credential(|secret| CredentialKind::Bearer { secret }, path, "token")
    }

    fn database(&self) -> Credential {
        let username = Username::Field("username".to_owned());
        self.credential(|secret| CredentialKind::Basic { username, secret }, "database/creds/reader", "password")
    }
}

fn private(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).expect("write");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("mode");
}

async fn authorization(credential: &Credential) -> Result<String, CredentialError> {
    let mut headers = HeaderMap::new();
    credential.apply(&mut headers, None).await?;
    Ok(headers.get("authorization").expect("a header").to_str().expect("text").to_owned())
}

/// User name and password of `Basic`.
async fn pair(credential: &Credential) -> Result<(String, String), CredentialError> {
    let text = authorization(credential).await?;
    let pair = base64::engine::general_purpose::STANDARD.decode(text.trim_start_matches("Basic ")).expect("base64");
    let pair = String::from_utf8(pair).expect("text");
    let (user, password) = pair.split_once(':').expect("a pair");
    Ok((user.to_owned(), password.to_owned()))
}

async fn until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, waiting).await.expect(what);
}

#[tokio::test]
async fn secrets_of_both_versions_of_kv_are_read_and_follow_changes() {
    let world = World::start(|server| {
        let mut state = server.state();
        state.namespace = Some("team-a".to_owned());
        state.put_kv2("secret/data/wiki", json!({"token": "version-two"}));
        state.secrets.insert("kv/wiki".to_owned(), json!({"token": "version-one", "data": {}}));
    })
    .await;
    let (two, one) = (world.bearer("secret/data/wiki"), world.bearer("kv/wiki"));
    assert_eq!(authorization(&two).await.as_deref(), Ok("Bearer version-two"));
    assert_eq!(authorization(&one).await.as_deref(), Ok("Bearer version-one"));
    assert_eq!(world.server.state().count("POST auth/approle/login"), 1, "one login serves both");

    world.server.state().put_kv2("secret/data/wiki", json!({"token": "rotated"}));
    until("the new value", async || authorization(&two).await.as_deref() == Ok("Bearer rotated")).await;

    // What is gone is withdrawn; what is only out of reach goes on.
    world.server.state().sealed = true;
    let asked = world.server.state().requests.len();
    until("it asks", async || world.server.state().requests.len() > asked).await;
    assert_eq!(authorization(&two).await.as_deref(), Ok("Bearer rotated"));
    {
        let mut state = world.server.state();
        state.sealed = false;
        state.secrets.remove("secret/data/wiki");
        state.forbidden.push("kv/wiki".to_owned());
    }
    until("withdrawn", async || authorization(&two).await.is_err() && authorization(&one).await.is_err()).await;
    let told = [&two, &one].map(authorization);
    let [two_told, one_told] = told;
    assert_eq!(
        two_told.await.expect_err("gone").to_string(),
        "credential `wiki` cannot be used: the vault does not have it"
    );
    assert_eq!(one_told.await.expect_err("gone").to_string(), "credential `wiki` cannot be used: the vault refuses it");

    // And it comes back.
    world.server.state().put_kv2("secret/data/wiki", json!({"token": "rotated"}));
    until("back", async || authorization(&two).await.as_deref() == Ok("Bearer rotated")).await;
}

#[tokio::test]
async fn a_lease_is_renewed_then_replaced_then_given_back() {
    let world =
        World::start(|server| server.state().lease_ttl = (Duration::from_secs(3), Duration::from_secs(7))).await;
    let database = world.database();
    let first = pair(&database).await.expect("pair");
    assert!(world.server.state().given.contains(&first.1));
    let lease = world.server.state().live_leases();
    assert_eq!(lease.len(), 1);

    // It outlives its first end, as the same.
    until("it is renewed", async || world.server.state().count("PUT sys/leases/renew") >= 1).await;
    assert_eq!(pair(&database).await.as_ref(), Ok(&first));
    // Near the end of its longest life there is another, and the old one is given back a little later.
    until("it is replaced", async || pair(&database).await.is_ok_and(|pair| pair != first)).await;
    let revoked = || world.server.state().count("PUT sys/leases/revoke") >= 1;
    until("it is given back", async || revoked() && !world.server.state().live_leases().contains(&lease[0])).await;

    assert_eq!(world.server.state().live_tokens(), 1);
    database.close().await;
    world.vault.close().await;
    assert_eq!(world.server.state().live_leases(), Vec::<String>::new());
    assert_eq!(world.server.state().live_tokens(), 0, "the token is given back, too");
    assert!(authorization(&database).await.is_err(), "nothing is used after it was given back");
}

#[tokio::test]
async fn a_lease_that_cannot_be_renewed_is_used_to_its_end_and_no_longer() {
    let world =
        World::start(|server| server.state().lease_ttl = (Duration::from_secs(3), Duration::from_secs(60))).await;
    let database = world.database();
    let first = pair(&database).await.expect("pair");
    let began = tokio::time::Instant::now();
    world.server.state().sealed = true;
    let asked = world.server.state().requests.len();
    until("it asks", async || world.server.state().requests.len() > asked).await;
    assert_eq!(pair(&database).await.as_ref(), Ok(&first), "after {:?}", began.elapsed());
    until("it ends", async || pair(&database).await.is_err()).await;
    assert!(began.elapsed() > Duration::from_millis(2_500), "{:?}", began.elapsed());
    let told = pair(&database).await.expect_err("ended").to_string();
    assert_eq!(told, "credential `wiki` cannot be used: it has expired and cannot be renewed");
    assert!(!told.contains(&first.0) && !told.contains(&first.1));

    world.server.state().sealed = false;
    until("another", async || pair(&database).await.is_ok_and(|pair| pair != first)).await;
}

#[tokio::test]
async fn tokens_are_renewed_and_replaced_before_and_after_they_end() {
    let world = World::start(|server| {
        let mut state = server.state();
        state.token_ttl = (Duration::from_secs(3), Duration::from_secs(6));
        state.put_kv2("secret/data/wiki", json!({"token": "abc"}));
    })
    .await;
    let (wiki, database) = (world.bearer("secret/data/wiki"), world.database());
    let first = pair(&database).await.expect("pair");
    until("it is renewed", async || world.server.state().count("PUT auth/token/renew-self") >= 1).await;
    until("a new login", async || world.server.state().count("POST auth/approle/login") >= 2).await;
    // Leases end with their token, so that there is a new one before that.
    until("another pair", async || pair(&database).await.is_ok_and(|pair| pair != first)).await;
    assert_eq!(authorization(&wiki).await.as_deref(), Ok("Bearer abc"));

    // Somebody revokes everything.
    let logins = world.server.state().count("POST auth/approle/login");
    world.server.state().end_tokens();
    until("a new login", async || world.server.state().count("POST auth/approle/login") > logins).await;
    until("a live lease", async || !world.server.state().live_leases().is_empty()).await;
    assert_eq!(authorization(&wiki).await.as_deref(), Ok("Bearer abc"));
}

#[tokio::test]
async fn a_path_that_is_forbidden_costs_no_logins() {
    let world = World::start(|server| {
        let mut state = server.state();
        state.put_kv2("secret/data/wiki", json!({"token": "abc"}));
        state.forbidden.push("secret/data/wiki".to_owned());
    })
    .await;
    let wiki = world.bearer("secret/data/wiki");
    assert!(authorization(&wiki).await.is_err());
    until("it tries again", async || world.server.state().count("GET secret/data/wiki") >= 3).await;
    assert_eq!(world.server.state().count("POST auth/approle/login"), 1);
}

#[tokio::test]
async fn a_token_from_a_file_is_read_again_when_it_has_ended() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("token");
    let world = World::start_with(
        |server| {
            let mut state = server.state();
            state.put_kv2("secret/data/wiki", json!({"token": "abc"}));
            private(&file, &state.issue_token());
        },
        |_| VaultAuth::Token(Source::File(file.clone())),
    )
    .await;
    let wiki = world.bearer("secret/data/wiki");
    assert_eq!(authorization(&wiki).await.as_deref(), Ok("Bearer abc"));
    world.server.state().end_tokens();
    let token = world.server.state().issue_token();
    private(&file, &token);
    world.server.state().put_kv2("secret/data/wiki", json!({"token": "after"}));
    until("the new token is used", async || authorization(&wiki).await.as_deref() == Ok("Bearer after")).await;
    wiki.close().await;
    world.vault.close().await;
    assert_eq!(world.server.state().live_tokens(), 1, "what somebody else has made is not revoked");
}

#[tokio::test]
async fn a_refused_secret_is_looked_at_again_before_its_time() {
    let world = World::start(|_| {}).await;
    let database = world.database();
    let first = pair(&database).await.expect("pair");
    let mut headers = HeaderMap::new();
    let applied: Applied<'_> = database.apply(&mut headers, None).await.expect("applied");
    assert_eq!(&**applied.name(), "wiki");
    applied.refused();
    until("another pair", async || pair(&database).await.is_ok_and(|pair| pair != first)).await;
    // A server that refuses everything does not have the vault asked for each call.
    let asked = world.server.state().count("GET database/creds");
    for _ in 0..50 {
        applied.refused();
        tokio::task::yield_now().await;
    }
    pair(&database).await.expect("pair");
    assert_eq!(world.server.state().count("GET database/creds"), asked);
}

#[tokio::test]
async fn a_dropped_credential_gives_its_lease_back() {
    let world = World::start(|_| {}).await;
    let database = world.database();
    pair(&database).await.expect("pair");
    assert_eq!(world.server.state().live_leases().len(), 1);
    drop(database);
    until("given back", async || world.server.state().live_leases().is_empty()).await;
    let World { server, vault, dir: _dir, tasks: _tasks } = world;
    drop(vault);
    until("given back", async || server.state().live_tokens() == 0).await;
}

fn issue(seconds: u64) -> (ServerIdentity, i64) {
    let issued = Authority::generate("Vault CA", 30).expect("authority");
    let issued = issued.issue_client("agents", Duration::from_secs(seconds)).expect("certificate");
    let read = ReloadingIdentity::from_pem(&issued.cert_pem, issued.key_pem.expose()).expect("identity");
    (issued, read.not_after_unix())
}

fn data(issued: &ServerIdentity) -> serde_json::Value {
    json!({"certificate": issued.cert_pem, "private_key": issued.key_pem.expose()})
}

async fn shown(credential: &Credential) -> Result<Arc<Certificate>, CredentialError> {
    let mut headers = HeaderMap::new();
    let applied = credential.apply(&mut headers, None).await?;
    assert!(headers.is_empty(), "a certificate is no header");
    Ok(applied.certificate().expect("a certificate").clone())
}

#[tokio::test]
async fn a_certificate_of_kv_follows_changes_and_a_pair_that_does_not_fit_replaces_none() {
    let ((first, ends), (second, later)) = (issue(1_000), issue(2_000));
    let world = World::start(|server| server.state().put_kv2("secret/data/cert", data(&first))).await;
    let credential = world.certificate("secret/data/cert", &[]);
    let one = shown(&credential).await.expect("a certificate");
    assert_eq!(one.not_after_unix(), ends);
    let mixed = json!({"certificate": second.cert_pem, "private_key": first.key_pem.expose()});
    world.server.state().put_kv2("secret/data/cert", mixed);
    let asked = world.server.state().count("GET secret/data/cert");
    until("it is looked at", async || world.server.state().count("GET secret/data/cert") > asked + 1).await;
    assert!(Arc::ptr_eq(&one, &shown(&credential).await.expect("the same")), "what is the same stays the very same");
    world.server.state().put_kv2("secret/data/cert", data(&second));
    let replaced = async || shown(&credential).await.is_ok_and(|shown| shown.not_after_unix() == later);
    until("the new one", replaced).await;
}

#[tokio::test]
async fn a_certificate_that_the_vault_makes_is_made_anew_before_its_end_and_not_at_each_look() {
    let ((first, ends), (second, later)) = (issue(9), issue(3_600));
    let chain = Authority::generate("Root", 30).expect("authority").cert_pem().to_owned();
    let mut with_chain = data(&first);
    with_chain["ca_chain"] = json!([chain]);
    let world = World::start(|server| {
        server.state().made.insert("pki/issue/agents".to_owned(), vec![with_chain, data(&second)]);
    })
    .await;
    let parameters = [("common_name", "agents.corp.example"), ("ttl", "9s")];
    let credential = world.certificate("pki/issue/agents", &parameters);
    assert_eq!(shown(&credential).await.expect("a certificate").not_after_unix(), ends);
    assert_eq!(world.server.state().written, [json!({"common_name": "agents.corp.example", "ttl": "9s"})]);
    // Many looks of what is only read would fit into this time.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.server.state().written.len(), 1);
    let replaced = async || shown(&credential).await.expect("never without one").not_after_unix() == later;
    until("the next one", replaced).await;
    assert_eq!(world.server.state().written.len(), 2);
    let mut headers = HeaderMap::new();
    credential.apply(&mut headers, None).await.expect("applied").refused();
    until("one that was refused is replaced", async || world.server.state().written.len() == 3).await;
}

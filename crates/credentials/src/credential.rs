//! Credentials: what is put on a request, by whose secret.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName};
use sortie_ids::Digest;
use sortie_runtime::TaskSet;
use sortie_tls::Secret;
use tokio::sync::watch;

use crate::certificate::{Certificate, CertificateAt, read_certificate};
use crate::echo::Prepared;
use crate::live::{Fetched, Keep, Live, Want};
use crate::oauth::{Slot, Slots, SubjectToken, TokenEndpoint, Tokens, basic};
use crate::problem::Problem;
use crate::source::{Source, VaultSecret};
use crate::vault::{Inner, Lease, Vault};

/// A credential as settings say it. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialSpec {
    /// The name by which records and errors call it.
    pub name: String,
    /// What it puts on requests.
    pub kind: CredentialKind,
}

/// What a credential puts on requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialKind {
    /// A header with a secret, such as `X-Api-Key`.
    Header {
        /// Its name.
        header: HeaderName,
        /// What is put before the secret, such as `Token `.
        prefix: String,
        /// The secret.
        secret: Source,
    },
    /// `Authorization: Bearer` with a secret.
    Bearer {
        /// The token.
        secret: Source,
    },
    /// `Authorization: Basic` with a name and a password (RFC 7617).
    Basic {
        /// The name.
        username: Username,
        /// The password.
        secret: Source,
    },
    /// `Authorization: Bearer` with a token that is asked for with a client's secret (RFC 6749, section 4.4).
    ClientCredentials {
        /// Where the token comes from.
        endpoint: TokenEndpoint,
        /// The client's secret.
        secret: Source,
    },
    /// `Authorization: Bearer` with a token that the caller's own is exchanged for (RFC 8693).
    TokenExchange {
        /// Where the token comes from.
        endpoint: TokenEndpoint,
        /// The client's secret.
        secret: Source,
    },
    /// A certificate that is shown in TLS: no header.
    ClientCertificate {
        /// The certificate.
        certificate: CertificateAt,
        /// The private key.
        secret: Source,
    },
}

/// The name in `Authorization: Basic`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Username {
    /// This one.
    Is(String),
    /// The one that the vault gives along with the password, under this name.
    Field(String),
}

impl CredentialSpec {
    /// Where its secret is.
    pub fn source(&self) -> &Source {
        match &self.kind {
            CredentialKind::Header { secret, .. }
            | CredentialKind::Bearer { secret }
            | CredentialKind::Basic { secret, .. }
            | CredentialKind::ClientCredentials { secret, .. }
            | CredentialKind::TokenExchange { secret, .. }
            | CredentialKind::ClientCertificate { secret, .. } => secret,
        }
    }

    /// The token endpoint that it asks, if it does.
    pub fn endpoint(&self) -> Option<&TokenEndpoint> {
        match &self.kind {
            CredentialKind::ClientCredentials { endpoint, .. } | CredentialKind::TokenExchange { endpoint, .. } => {
                Some(endpoint)
            }
            _ => None,
        }
    }

    /// Whether it needs a token of the caller.
    pub fn exchanges(&self) -> bool {
        matches!(self.kind, CredentialKind::TokenExchange { .. })
    }

    /// The header that it puts on requests, if it does.
    pub fn header(&self) -> Option<&HeaderName> {
        match &self.kind {
            CredentialKind::Header { header, .. } => Some(header),
            CredentialKind::ClientCertificate { .. } => None,
            _ => Some(&AUTHORIZATION),
        }
    }

    /// What is missing for it, as far as that shows without asking anybody. Blocks.
    ///
    /// # Errors
    /// The file, variable or program by its name; of a certificate also what is wrong with it or its key.
    pub fn check(&self) -> Result<(), String> {
        self.source().check()?;
        let CredentialKind::ClientCertificate { certificate, secret } = &self.kind else { return Ok(()) };
        let beside = match certificate {
            CertificateAt::File(path) => Some(read_certificate(path).map_err(|problem| problem.private)?),
            CertificateAt::WithKey | CertificateAt::Field(_) => None,
        };
        let Some(key) = secret.at_hand() else { return Ok(()) };
        Certificate::new(&key, beside.as_ref()).map(drop).map_err(|(_, private)| private)
    }
}

/// Why a credential cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Something that it needs is not there: a file, a variable, a program, a vault.
    #[error("{0}")]
    Missing(String),
}

/// Why a call gets no credential. Safe for the caller: it names the credential, and nothing of its secret or its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// Its secret cannot be had now.
    #[error("credential `{name}` cannot be used: {reason}")]
    Unavailable {
        /// The credential.
        name: Arc<str>,
        /// Why.
        reason: &'static str,
    },
    /// It is for callers who bring a token.
    #[error("credential `{name}` cannot be used: the call brings no token that could be exchanged")]
    NoSubject {
        /// The credential.
        name: Arc<str>,
    },
}

/// For whom a token is exchanged.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// What tells callers apart: those with the same get the same token.
    pub key: Digest,
    /// The caller's own token, a JWT.
    pub token: &'a str,
}

/// A credential that is kept ready. Its task ends, and gives back its lease, when this is closed or dropped.
pub struct Credential {
    spec: CredentialSpec,
    name: Arc<str>,
    vault: Option<Arc<Inner>>,
    kept: Kept,
}

enum Kept {
    Static(Live<Prepared>),
    Certificate(Live<Certificate>),
    Client(Live<Secret>, Box<Tokens>, Arc<Slot>),
    Exchange(Live<Secret>, Box<Tokens>, Slots),
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl Credential {
    /// Begins to keep it. `vaults` are those of the settings, by name. Blocks to look for what is missing; to be called
    /// within a runtime.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(
        spec: CredentialSpec,
        vaults: &BTreeMap<String, Arc<Vault>>,
        tasks: &TaskSet,
    ) -> Result<Self, StartError> {
        spec.check().map_err(StartError::Missing)?;
        let vault = match spec.source() {
            Source::Vault(VaultSecret { server, .. }) => {
                let missing = || StartError::Missing(format!("there is no [vault.{server}]"));
                Some(vaults.get(server).ok_or_else(missing)?.client())
            }
            _ => None,
        };
        let tokens = spec.endpoint().cloned().map(Tokens::new).transpose().map_err(StartError::Missing)?;
        let name: Arc<str> = spec.name.as_str().into();
        let keeper = Keeper::new(&spec, vault.clone());
        let kept = match tokens {
            None if matches!(spec.kind, CredentialKind::ClientCertificate { .. }) => {
                Kept::Certificate(Live::start(keeper.making(certified), tasks))
            }
            None => {
                let kind = spec.kind.clone();
                let prepare = move |secret: &Secret, username: Option<&Secret>| {
                    prepared(&kind, secret, username).map(Made::lasting).map_err(unusable)
                };
                Kept::Static(Live::start(keeper.making(prepare), tasks))
            }
            Some(tokens) => {
                let same = |secret: &Secret, _: Option<&Secret>| Ok(Made::lasting(secret.clone()));
                let secret = Live::start(keeper.making(same), tasks);
                if spec.exchanges() {
                    Kept::Exchange(secret, Box::new(tokens), Slots::default())
                } else {
                    Kept::Client(secret, Box::new(tokens), Arc::default())
                }
            }
        };
        Ok(Self { spec, name, vault, kept })
    }

    /// What it was started with.
    pub fn spec(&self) -> &CredentialSpec {
        &self.spec
    }

    /// Its name, for records.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Whether one that was started with this would be the same. Blocks to look at the file of CAs.
    pub fn is_as(&self, spec: &CredentialSpec, vaults: &BTreeMap<String, Arc<Vault>>) -> bool {
        let same_vault = match (spec.source(), &self.vault) {
            (Source::Vault(place), Some(mine)) => {
                vaults.get(&place.server).is_some_and(|vault| Arc::ptr_eq(&vault.client(), mine))
            }
            _ => true,
        };
        let current = match &self.kept {
            Kept::Static(_) | Kept::Certificate(_) => true,
            Kept::Client(_, tokens, _) | Kept::Exchange(_, tokens, _) => tokens.are_current(),
        };
        self.spec == *spec && same_vault && current
    }

    /// Puts the credential on a request, in place of whatever the caller has sent by that name; a certificate is given
    /// with what this returns. Waits only where the first value is yet to come, or a token has to be fetched.
    ///
    /// # Errors
    /// See [`CredentialError`]; the request must not be sent then.
    pub async fn apply(
        &self,
        headers: &mut HeaderMap,
        subject: Option<Subject<'_>>,
    ) -> Result<Applied<'_>, CredentialError> {
        let unavailable = |reason| CredentialError::Unavailable { name: self.name.clone(), reason };
        let (prepared, slot) = match &self.kept {
            Kept::Certificate(live) => {
                let certificate = live.get().await.map_err(unavailable)?;
                return Ok(Applied { credential: self, put: Put::Certificate(certificate) });
            }
            Kept::Static(live) => (live.get().await.map_err(unavailable)?, None),
            Kept::Client(secret, tokens, slot) => {
                let secret = secret.get().await.map_err(unavailable)?;
                let token = tokens.get(slot, &secret, None).await;
                (token.map_err(|problem| unavailable(self.told(&problem)))?, Some(slot.clone()))
            }
            Kept::Exchange(secret, tokens, slots) => {
                let subject = subject.ok_or_else(|| CredentialError::NoSubject { name: self.name.clone() })?;
                let secret = secret.get().await.map_err(unavailable)?;
                let slot = slots.of(&subject.key);
                let token = tokens.get(&slot, &secret, Some(SubjectToken(subject.token))).await;
                (token.map_err(|problem| unavailable(self.told(&problem)))?, Some(slot))
            }
        };
        prepared.put(headers);
        Ok(Applied { credential: self, put: Put::Header(prepared, slot) })
    }

    /// Ends its task, and waits until its lease was given back: at most some seconds.
    pub async fn close(&self) {
        match &self.kept {
            Kept::Static(live) => live.close().await,
            Kept::Certificate(live) => live.close().await,
            Kept::Client(live, ..) | Kept::Exchange(live, ..) => live.close().await,
        }
    }

    fn told(&self, problem: &Problem) -> &'static str {
        tracing::warn!(credential = %self.name, "no token: {}", problem.private);
        problem.public
    }
}

/// A credential that was put on a request, for what is done with the answer.
pub struct Applied<'a> {
    credential: &'a Credential,
    put: Put,
}

enum Put {
    Header(Arc<Prepared>, Option<Arc<Slot>>),
    Certificate(Arc<Certificate>),
}

impl Applied<'_> {
    /// The credential's name, for records.
    pub fn name(&self) -> &Arc<str> {
        &self.credential.name
    }

    /// The certificate that the request's connection has to show, if the credential is one. Connections that have shown
    /// it are for those calls only that get this very value.
    pub fn certificate(&self) -> Option<&Arc<Certificate>> {
        match &self.put {
            Put::Certificate(certificate) => Some(certificate),
            Put::Header(..) => None,
        }
    }

    /// To be called when the upstream has answered 401, or has not accepted the certificate: a token is dropped, and other
    /// secrets are looked at again, so that the next call may get a new one. At most once in ten seconds.
    pub fn refused(&self) {
        match (&self.credential.kept, &self.put) {
            (Kept::Static(live), _) => live.ask(),
            (Kept::Certificate(live), _) => live.ask(),
            (_, Put::Header(prepared, Some(slot))) => slot.refused(prepared),
            _ => {}
        }
    }

    /// Whether this text, which the upstream has sent, repeats the secret.
    pub fn is_repeated_in(&self, text: &str) -> bool {
        match &self.put {
            Put::Header(prepared, _) => prepared.is_repeated_in(text),
            Put::Certificate(_) => false,
        }
    }

    /// Takes the secret out of an answer's headers, where the upstream repeats it; how many headers did.
    pub fn redact(&self, headers: &mut HeaderMap) -> usize {
        match &self.put {
            Put::Header(prepared, _) => prepared.redact(headers),
            Put::Certificate(_) => 0,
        }
    }
}

fn prepared(kind: &CredentialKind, secret: &Secret, username: Option<&Secret>) -> Result<Prepared, &'static str> {
    match kind {
        CredentialKind::Header { header, prefix, .. } => Prepared::new(header.clone(), prefix, secret, &[]),
        CredentialKind::Basic { username: name, .. } => {
            let name = match (name, username) {
                (Username::Is(name), _) => name.as_str(),
                (Username::Field(_), Some(name)) => name.expose(),
                (Username::Field(_), None) => return Err("has no user name beside it"),
            };
            if name.contains(':') {
                return Err("is for a user name with a colon, which `Basic` cannot have");
            }
            Prepared::new(AUTHORIZATION, "Basic ", &basic(name, secret.expose()), &[secret])
        }
        _ => Prepared::new(AUTHORIZATION, "Bearer ", secret, &[]),
    }
}

fn unusable(what: &'static str) -> Problem {
    Problem::passing("it cannot be put into a header", format!("the secret {what}"))
}

fn certified(key: &Secret, beside: Option<&Secret>) -> Result<Made<Certificate>, Problem> {
    let certificate = Certificate::new(key, beside);
    let value = certificate.map_err(|(public, private)| Problem::passing(public, private))?;
    let ends = Some(value.not_after_unix());
    Ok(Made { value, ends })
}

/// What a secret was made into.
struct Made<T> {
    value: T,
    /// When it ends by itself, in seconds since 1970.
    ends: Option<i64>,
}

impl<T> Made<T> {
    fn lasting(value: T) -> Self {
        Self { value, ends: None }
    }
}

/// What belongs to a secret, and where it is.
enum Beside {
    Nothing,
    Field(String),
    Certificate(CertificateAt),
}

/// What one credential's task keeps.
struct Keeper<M> {
    name: String,
    source: Source,
    beside: Beside,
    vault: Option<(Arc<Inner>, watch::Receiver<u64>)>,
    make: M,
    last: Option<Secret>,
    /// When what was last made ends by itself, in seconds since 1970.
    ends: Option<i64>,
    lease: Option<Lease>,
}

impl Keeper<()> {
    fn new(spec: &CredentialSpec, vault: Option<Arc<Inner>>) -> Self {
        let beside = match &spec.kind {
            CredentialKind::Basic { username: Username::Field(name), .. } => Beside::Field(name.clone()),
            CredentialKind::ClientCertificate { certificate, .. } => Beside::Certificate(certificate.clone()),
            _ => Beside::Nothing,
        };
        let vault = vault.map(|vault| {
            let generations = vault.generations();
            (vault, generations)
        });
        let (name, source) = (spec.name.clone(), spec.source().clone());
        Self { name, source, beside, vault, make: (), last: None, ends: None, lease: None }
    }

    fn making<M>(self, make: M) -> Keeper<M> {
        let Self { name, source, beside, vault, last, ends, lease, make: () } = self;
        Keeper { name, source, beside, vault, make, last, ends, lease }
    }
}

impl<T, M> Keep for Keeper<M>
where
    T: Send + Sync + 'static,
    M: Fn(&Secret, Option<&Secret>) -> Result<Made<T>, Problem> + Send + Sync + 'static,
{
    type Value = T;

    fn names(&self) -> (&str, &'static str) {
        (&self.name, self.source.kind())
    }

    async fn fetch(&mut self, want: Want) -> Result<Fetched<T>, Problem> {
        if want == Want::Value {
            self.last = None;
        }
        let (Source::Vault(place), Some((vault, generations))) = (&self.source, &mut self.vault) else {
            let found = self.source.read().await?;
            let beside = match &self.beside {
                Beside::Certificate(CertificateAt::File(path)) => Some(certificate_of(path.clone()).await?),
                _ => None,
            };
            let value = self.made(&found.secret, beside.as_ref())?;
            return Ok(Fetched { value, until: self.until(found.until), again: found.again });
        };
        let vault = vault.clone();
        let generation = *generations.borrow_and_update();
        let renewable = |lease: &&Lease| want == Want::Fresh && lease.renewable && lease.generation == generation;
        if let Some(lease) = self.lease.as_ref().filter(renewable) {
            match vault.renew(lease).await {
                Ok(life) if life >= lease.life / 2 => {
                    return Ok(Fetched { value: None, until: Some(life), again: Some(life * 2 / 3) });
                }
                // It nears the longest life that it may have.
                Ok(_) => {}
                Err(problem) => tracing::debug!(credential = self.name, "not renewed: {}", problem.private),
            }
        }
        let mut reading = vault.read(place).await?;
        let there = |name: &str, found: Option<Secret>| {
            let told = format!("`{}` has no field `{name}`", place.path);
            found.ok_or_else(|| Problem::withdrawn("the vault does not have it", told))
        };
        let (until, again) = match &reading.lease {
            Some(lease) => (Some(lease.life), Some(lease.life * 2 / 3)),
            None => (None, Some(place.refresh)),
        };
        let issued = reading.lease.is_none() && !place.parameters.is_empty();
        let secret = there(&place.field, reading.field(&place.field));
        let beside = match &self.beside {
            Beside::Field(name) => there(name, reading.field(name)).map(Some),
            Beside::Certificate(CertificateAt::Field(name)) => there(name, reading.certificate(name)).map(Some),
            _ => Ok(None),
        };
        let value = match (secret, beside) {
            (Ok(secret), Ok(beside)) => self.made(&secret, beside.as_ref()),
            (Err(problem), _) | (_, Err(problem)) => Err(problem),
        };
        // What was given has to be given back, of use or not.
        let before = std::mem::replace(&mut self.lease, reading.lease.take());
        if let Some(before) = before {
            vault.replaced(before);
        }
        let value = value?;
        let until = self.until(until);
        // What is made anew by each look is not looked at before its time.
        let again = if issued { until.map(|until| until * 2 / 3).or(again) } else { again };
        Ok(Fetched { value, until, again })
    }

    async fn disturbed(&mut self) {
        match (&self.lease, &mut self.vault) {
            // Leases end with the token that they were made with.
            (Some(lease), Some((_, generations))) => {
                let mine = lease.generation;
                if generations.wait_for(|now| *now != mine).await.is_err() {
                    std::future::pending().await
                }
            }
            _ => std::future::pending().await,
        }
    }

    async fn give_back(&mut self) {
        if let (Some(lease), Some((vault, _))) = (self.lease.take(), &self.vault) {
            vault.revoke(&lease.id).await;
        }
    }
}

impl<M> Keeper<M> {
    /// The value of a secret; `None` where it is the one that it was.
    fn made<T>(&mut self, secret: &Secret, beside: Option<&Secret>) -> Result<Option<T>, Problem>
    where
        M: Fn(&Secret, Option<&Secret>) -> Result<Made<T>, Problem>,
    {
        let whole = Secret::new(format!("{}\0{}", beside.map_or("", Secret::expose), secret.expose()));
        if self.last.as_ref().is_some_and(|last| last.expose() == whole.expose()) {
            return Ok(None);
        }
        let made = (self.make)(secret, beside)?;
        self.last = Some(whole);
        self.ends = made.ends;
        Ok(Some(made.value))
    }

    /// How long a value may be used for which its source says this much.
    fn until(&self, said: Option<Duration>) -> Option<Duration> {
        let left = self.ends.map(left_until);
        [said, left].into_iter().flatten().min()
    }
}

/// None where it is past.
fn left_until(unix: i64) -> Duration {
    let end = UNIX_EPOCH + Duration::from_secs(u64::try_from(unix).unwrap_or(0));
    end.duration_since(SystemTime::now()).unwrap_or_default()
}

async fn certificate_of(path: PathBuf) -> Result<Secret, Problem> {
    let read = tokio::task::spawn_blocking(move || read_certificate(&path)).await;
    read.map_err(|_| Problem::passing("it cannot be read", "the program is ending"))?
}

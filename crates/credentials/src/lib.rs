//! With whose secret: where secrets come from, and how they are put on a request at the last moment.
//!
//! A [`Source`] is a place that a secret lives in: a file, a variable of the environment, a command's output, a server
//! of Vault or OpenBao. A [`Credential`] keeps what its source holds fresh, or fetches tokens with it, and puts a
//! header on requests. Settings name sources; they never hold a secret.
//!
//! It must never print a secret, nor repeat what a source, a vault or a token endpoint has said beyond a status. It
//! knows nothing of routes, callers or policy. Tasks run in the [`sortie_runtime::TaskSet`] that is passed in; each ends
//! when the [`Credential`] or [`Vault`] that it is for is closed or dropped, and gives back its lease first.

mod certificate;
mod command;
mod credential;
mod echo;
mod http_client;
mod live;
mod oauth;
mod problem;
mod source;
mod vault;

pub use certificate::{Certificate, CertificateAt};
pub use credential::{
    Applied, Credential, CredentialError, CredentialKind, CredentialSpec, StartError, Subject, Username,
};
pub use http_client::{Trust, is_private_url, told};
pub use oauth::{ClientAuth, TokenEndpoint};
pub use sortie_tls::Secret;
pub use source::{Command, Source, VaultSecret};
pub use vault::{Vault, VaultAuth, VaultSpec};

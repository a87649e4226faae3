//! Checkpoints as objects of a store, or requests to any HTTP endpoint.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderMap, Method};
use sortie_audit::Log;
use sortie_credentials::{CredentialSpec, Vault};
use sortie_runtime::TaskSet;
use url::Url;

use super::{Place, STEP, Unpublished, plain};
use crate::client::Client;
use crate::spec::Tls;
use crate::transport::Failure;

pub(super) struct Put {
    client: Client,
    method: Method,
    template: String,
    origin: String,
}

impl Put {
    pub(super) fn new(
        method: Method,
        template: String,
        credential: Option<&CredentialSpec>,
        tls: &Tls,
        log: &Log,
        vaults: &BTreeMap<String, Arc<Vault>>,
        tasks: &TaskSet,
    ) -> Result<Self, String> {
        let origin = plain(log.verifying_key().name());
        let url = filled(&template, &origin, 0)?;
        let client = Client::new(&url, tls, credential, STEP, vaults, tasks)?;
        Ok(Self { client, method, template, origin })
    }
}

impl Place for Put {
    async fn publish(&mut self, note: &str, size: u64) -> Result<(), Unpublished> {
        let url = filled(&self.template, &self.origin, size).map_err(Unpublished::later)?;
        let body = note.as_bytes().to_vec();
        let asked =
            self.client.ask(self.method.clone(), url, "text/plain; charset=utf-8", HeaderMap::new(), body).await;
        let answer = asked.map_err(unpublished)?;
        if answer.status.is_success() { Ok(()) } else { Err(unpublished(answer.failure())) }
    }

    async fn close(&mut self) {
        self.client.close().await;
    }
}

/// What a failed request means for a checkpoint: there is nothing wrong with it, so it is tried again.
pub(super) fn unpublished(failure: Failure) -> Unpublished {
    match failure {
        Failure::Again { why, after } => Unpublished { after, ..Unpublished::later(why) },
        Failure::Refused(why) => Unpublished::later(why),
        Failure::Partly(_) => Unpublished::later("it took a part of it only"),
    }
}

fn filled(template: &str, origin: &str, size: u64) -> Result<Url, String> {
    let text = template.replace("{origin}", origin).replace("{size}", &format!("{size:020}"));
    Url::parse(&text).map_err(|error| format!("`url` is none: {error}"))
}

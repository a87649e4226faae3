//! Models: the scripted one that is built in, and those of upstreams.

mod script;
mod scripted;
mod sse;
mod stream;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use sortie_api::Model;
use tokio::sync::mpsc::UnboundedSender;

use crate::model::{Delta, ModelAnswer, ModelError, ModelRequest, Models, REQUEST_FAILED};
use scripted::Scripted;

/// The models that there are.
#[derive(Debug, Default)]
pub struct Catalog {
    scripted: Scripted,
}

impl Catalog {
    /// With scripts by their names: `scripted-NAME` plays one where the conversation holds none, and `scripted` the one
    /// without a name.
    pub fn with_scripts(scripts: BTreeMap<String, Arc<str>>) -> Self {
        Self { scripted: Scripted::new(scripts) }
    }
}

impl Models for Catalog {
    fn ask<'a>(
        &'a self,
        request: &'a ModelRequest,
        deltas: UnboundedSender<Delta>,
    ) -> BoxFuture<'a, Result<ModelAnswer, ModelError>> {
        async move {
            self.check(&request.model).map_err(|why| ModelError::new(REQUEST_FAILED, why))?;
            self.scripted.ask(request, &deltas).await
        }
        .boxed()
    }

    fn check(&self, model: &Model) -> Result<(), String> {
        if self.scripted.plays(&model.id) {
            return Ok(());
        }
        Err(format!("there is no model `{}` here; `scripted` is always there", model.id))
    }
}

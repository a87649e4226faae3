//! `sortie audit sinks`: how far the sinks of the gateway on this machine are.

use std::path::Path;

use sortie_api::List;
use sortie_gateway::SinkStatus;

use crate::error::Failure;
use crate::local::LocalGateway;
use crate::output::{self, Style, printable};

pub(super) async fn run(data_dir: Option<&Path>, style: Style) -> Result<(), Failure> {
    let gateway = LocalGateway::open(data_dir)?;
    let sinks: List<SinkStatus> = gateway.get("/v1/audit/sinks").await?;
    let head =
        ["name", "kind", "state", "next", "records behind", "bytes behind", "delivered", "dropped", "last error"];
    output::list(style, &sinks.data, &head, |sink| {
        let state = if sink.denies { "denies calls" } else { sink.state.as_str() };
        vec![
            sink.name.clone(),
            sink.kind.clone(),
            state.to_owned(),
            sink.next.to_string(),
            sink.lag_records.to_string(),
            sink.lag_bytes.to_string(),
            sink.delivered.to_string(),
            sink.dropped.to_string(),
            sink.last_error.as_deref().map_or_else(|| "-".to_owned(), printable),
        ]
    })
}

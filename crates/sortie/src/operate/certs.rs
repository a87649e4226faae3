//! `sortie certs`.

use sortie_api::{CreateCertificate, TunnelCertificate};

use super::time;
use crate::cli::{CertsCommand, HubAccess};
use crate::error::Failure;
use crate::output::Style;
use crate::{output, profile};

pub(crate) async fn run(command: CertsCommand, access: &HubAccess, output: Style) -> Result<(), Failure> {
    let hub = profile::hub(access)?;
    match command {
        CertsCommand::List { tunnel, include_archived } => {
            let path = format!("/v1/tunnels/{tunnel}/certificates?include_archived={include_archived}");
            let certificates: Vec<TunnelCertificate> = hub.all(&path).await?;
            output::list(output, &certificates, &["id", "fingerprint", "expires", "archived"], |one| {
                vec![one.id.to_string(), one.fingerprint.to_string(), time(one.expires_at), time(one.archived_at)]
            })
        }
        CertsCommand::Add { tunnel, file } => {
            let ca_certificate_pem = std::fs::read_to_string(&file)
                .map_err(|error| Failure::usage(format!("{} cannot be read: {error}", file.display())))?;
            let body = CreateCertificate { ca_certificate_pem };
            show(output, &hub.post(&format!("/v1/tunnels/{tunnel}/certificates"), &body).await?)
        }
        CertsCommand::Get { tunnel, certificate } => {
            show(output, &hub.get(&format!("/v1/tunnels/{tunnel}/certificates/{certificate}")).await?)
        }
        CertsCommand::Archive { tunnel, certificate } => {
            let path = format!("/v1/tunnels/{tunnel}/certificates/{certificate}/archive");
            show(output, &hub.post(&path, &serde_json::json!({})).await?)
        }
    }
}

fn show(output: Style, one: &TunnelCertificate) -> Result<(), Failure> {
    output::one(
        output,
        one,
        &[
            ("id", one.id.to_string()),
            ("tunnel", one.tunnel_id.to_string()),
            ("fingerprint", one.fingerprint.to_string()),
            ("created", one.created_at.to_string()),
            ("expires", time(one.expires_at)),
            ("archived", time(one.archived_at)),
        ],
    )
}

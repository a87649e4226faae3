//! `/v1/tunnels/{tunnel_id}/certificates`.

use axum::extract::State;
use axum::response::Json;
use sortie_api::{ApiError, CreateCertificate, List, TunnelCertificate};
use sortie_ids::{CertificateId, TunnelId};
use sortie_store::NewCertificate;

use super::extract::{At, Listing, Object};
use super::frame::{Call, Failure};
use super::{Api, audit};

pub(super) async fn create(
    State(api): Api,
    call: Call,
    At(tunnel): At<TunnelId>,
    Object(body): Object<CreateCertificate>,
) -> Result<Json<TunnelCertificate>, Failure> {
    let (pem, most) = (body.ca_certificate_pem, CreateCertificate::MAX_PEM_BYTES);
    if pem.len() > most {
        let length = pem.len();
        return Err(ApiError::invalid_request(format!("ca_certificate_pem: {length} bytes, at most {most}")).into());
    }
    let checked =
        (api.check_ca)(&pem).map_err(|reason| ApiError::invalid_request(format!("ca_certificate_pem: {reason}")))?;
    let new = NewCertificate { pem, fingerprint: checked.fingerprint, expires_at: Some(checked.expires_at) };
    let added = api.store.add_certificate(&call.caller.key.workspace, &tunnel, new, &api.limits).await?;
    if added.fresh {
        audit::certificate_added(&call, &added.certificate);
    }
    Ok(Json(added.certificate))
}

pub(super) async fn list(
    State(api): Api,
    call: Call,
    At(tunnel): At<TunnelId>,
    Listing(query): Listing,
) -> Result<Json<List<TunnelCertificate>>, Failure> {
    let name = format!("certificates of {tunnel}");
    let page = query.check(&name, &api.limits)?;
    let page = api.store.list_certificates(&call.caller.key.workspace, &tunnel, page).await?;
    Ok(super::list(&name, page, |certificate| certificate))
}

pub(super) async fn retrieve(
    State(api): Api,
    call: Call,
    At((tunnel, id)): At<(TunnelId, CertificateId)>,
) -> Result<Json<TunnelCertificate>, Failure> {
    Ok(Json(api.store.get_certificate(&call.caller.key.workspace, &tunnel, &id).await?))
}

pub(super) async fn archive(
    State(api): Api,
    call: Call,
    At((tunnel, id)): At<(TunnelId, CertificateId)>,
) -> Result<Json<TunnelCertificate>, Failure> {
    let archived = api.store.archive_certificate(&call.caller.key.workspace, &tunnel, &id).await?;
    if archived.fresh {
        audit::certificate_revoked(&call, &archived.certificate);
    }
    Ok(Json(archived.certificate))
}

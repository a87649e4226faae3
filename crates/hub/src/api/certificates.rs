//! `/v1/tunnels/{tunnel_id}/certificates`.

use axum::extract::State;
use axum::response::{Json, Response};
use sortie_api::{ApiError, CreateCertificate, List, ListQuery, TunnelCertificate};
use sortie_ids::{CertificateId, TunnelId};
use sortie_store::{AddedCertificate, Made, NewCertificate};

use super::extract::{Asked, At, Creation};
use super::frame::{Call, Failure};
use super::repeat::{again, once};
use super::{Api, audit};

pub(super) async fn create(
    State(api): Api,
    call: Call,
    At(tunnel): At<TunnelId>,
    request: Creation<CreateCertificate>,
) -> Result<Response, Failure> {
    let home = call.home(&api, &tunnel).await?;
    // Whose tunnel it is comes before what is wrong with the certificate.
    api.store.get_tunnel(&home, &tunnel).await?;
    let (pem, most) = (request.body.ca_certificate_pem, api.limits.pem_bytes);
    if pem.len() > usize::try_from(most).unwrap_or(usize::MAX) {
        let length = pem.len();
        return Err(ApiError::invalid_request(format!("ca_certificate_pem: {length} bytes, at most {most}")).into());
    }
    let checked =
        (api.check_ca)(&pem).map_err(|reason| ApiError::invalid_request(format!("ca_certificate_pem: {reason}")))?;
    let new = NewCertificate { pem, fingerprint: checked.fingerprint, expires_at: Some(checked.expires_at) };
    let shown = |added: &AddedCertificate| added.certificate.clone();
    let made = match request.idempotency_key {
        Some(key) => {
            let once = once(key, request.digest, shown);
            api.store.add_certificate_once(&home, &tunnel, new, &api.limits, once).await?
        }
        None => Made::Now(api.store.add_certificate(&home, &tunnel, new, &api.limits).await?),
    };
    match made {
        Made::Now(added) => {
            if added.fresh {
                audit::certificate_added(&call, &added.certificate);
            }
            Ok(super::json(added.certificate))
        }
        earlier => Ok(again(earlier, shown)),
    }
}

pub(super) async fn list(
    State(api): Api,
    call: Call,
    At(tunnel): At<TunnelId>,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<List<TunnelCertificate>>, Failure> {
    let home = call.home(&api, &tunnel).await?;
    let name = format!("certificates of {tunnel}");
    let page = query.check(&name, &api.limits)?;
    let page = api.store.list_certificates(&home, &tunnel, page).await?;
    Ok(super::list(&name, page, |certificate| certificate))
}

pub(super) async fn retrieve(
    State(api): Api,
    call: Call,
    At((tunnel, id)): At<(TunnelId, CertificateId)>,
) -> Result<Json<TunnelCertificate>, Failure> {
    Ok(Json(api.store.get_certificate(&call.home(&api, &tunnel).await?, &tunnel, &id).await?))
}

pub(super) async fn archive(
    State(api): Api,
    call: Call,
    At((tunnel, id)): At<(TunnelId, CertificateId)>,
) -> Result<Json<TunnelCertificate>, Failure> {
    let archived = api.store.archive_certificate(&call.home(&api, &tunnel).await?, &tunnel, &id).await?;
    if archived.fresh {
        audit::certificate_revoked(&call, &archived.certificate);
    }
    Ok(Json(archived.certificate))
}

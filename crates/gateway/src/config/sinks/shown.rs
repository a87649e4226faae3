//! Sinks as the settings show them.

use http::Method;
use sortie_credentials::{CredentialKind, CredentialSpec, Username};
use sortie_sinks::{SinkKind, SinkSpec, Tls};

use super::super::Span;
use super::{RawKind, RawMethod, RawSink, RawSinkCredential, RawSinkTls};

impl From<&SinkSpec> for RawSink {
    fn from(spec: &SinkSpec) -> Self {
        let mut raw = Self {
            name: spec.name.clone(),
            kind: RawKind::Http,
            address: None,
            url: None,
            tls: None,
            insecure: false,
            facility: None,
            enterprise_id: None,
            confirm: None,
            encoding: None,
            token: None,
            index: None,
            source: None,
            sourcetype: None,
            acknowledge: None,
            method: None,
            body: None,
            credential: None,
            format: spec.format.into(),
            from: spec.from.into(),
            spool_bytes: Some(spec.spool_bytes),
            on_full: spec.on_full.into(),
            on_refused: spec.on_refused.into(),
            batch_records: Some(spec.batch.records),
            batch_bytes: Some(spec.batch.bytes),
            batch_wait: Some(Span(spec.batch.wait)),
            timeout: Some(Span(spec.timeout)),
        };
        match &spec.kind {
            SinkKind::Syslog(kind) => {
                let host = if kind.host.contains(':') { format!("[{}]", kind.host) } else { kind.host.clone() };
                raw.kind = RawKind::Syslog;
                raw.address = Some(format!("{host}:{}", kind.port));
                raw.tls =
                    kind.tls.as_ref().map(|tls| RawSinkTls { server_name: kind.server_name.clone(), ..tls.into() });
                raw.insecure = kind.tls.is_none();
                (raw.facility, raw.enterprise_id) = (Some(kind.facility), kind.enterprise_id);
                raw.confirm = Some(kind.confirm.into());
            }
            SinkKind::Otlp(kind) => {
                raw.kind = RawKind::Otlp;
                raw.url = Some(kind.url.to_string());
                raw.encoding = Some(kind.encoding.into());
                raw.credential = kind.credential.as_ref().map(Into::into);
                raw.tls = shown(&kind.tls);
            }
            SinkKind::Splunk(kind) => {
                raw.kind = RawKind::Splunk;
                raw.url = Some(kind.url.to_string());
                raw.token = Some(kind.token.source().into());
                (raw.index, raw.source) = (kind.index.clone(), kind.source.clone());
                raw.sourcetype = Some(kind.sourcetype.clone());
                raw.acknowledge = Some(kind.acknowledge);
                raw.tls = shown(&kind.tls);
            }
            SinkKind::Http(kind) => {
                raw.url = Some(kind.url.to_string());
                raw.method = Some(if kind.method == Method::PUT { RawMethod::Put } else { RawMethod::Post });
                raw.body = Some(kind.body.into());
                raw.credential = kind.credential.as_ref().map(Into::into);
                raw.tls = shown(&kind.tls);
            }
        }
        raw
    }
}

fn shown(tls: &Tls) -> Option<RawSinkTls> {
    (*tls != Tls::default()).then(|| tls.into())
}

impl From<&Tls> for RawSinkTls {
    fn from(tls: &Tls) -> Self {
        Self {
            ca_file: tls.trust.ca_file.clone(),
            include_system_cas: tls.trust.include_system_cas,
            client_cert_file: tls.client.as_ref().map(|(cert, _)| cert.clone()),
            client_key_file: tls.client.as_ref().map(|(_, key)| key.clone()),
            server_name: None,
        }
    }
}

impl From<&CredentialSpec> for RawSinkCredential {
    fn from(spec: &CredentialSpec) -> Self {
        let mut raw = Self { secret: spec.source().into(), header: None, prefix: None, username: None };
        match &spec.kind {
            CredentialKind::Header { header, prefix, .. } => {
                raw.header = Some(header.as_str().to_owned());
                raw.prefix = Some(prefix.clone()).filter(|prefix| !prefix.is_empty());
            }
            CredentialKind::Basic { username: Username::Is(name), .. } => raw.username = Some(name.clone()),
            _ => {}
        }
        raw
    }
}

//! Credentials and vaults as the settings show them.

use sortie_credentials::{
    CertificateAt, ClientAuth, Command, CredentialKind, Source, Trust, Username, VaultAuth, VaultSecret, VaultSpec,
};

use super::super::Span;
use super::{
    RawAppRole, RawClientAuth, RawCredential, RawKind, RawSource, RawSubject, RawTrust, RawVault, RouteCredential,
    SubjectToken,
};

impl From<&RouteCredential> for RawCredential {
    fn from(credential: &RouteCredential) -> Self {
        let spec = &credential.spec;
        let endpoint = spec.endpoint();
        let (subject, subject_audience) = match &credential.subject {
            SubjectToken::Hub => (None, None),
            SubjectToken::Gateway { audience } => (Some(RawSubject::Gateway), Some(audience.clone())),
        };
        let (mut certificate_file, mut certificate_field) = (None, None);
        let (mut kind, mut header, mut prefix, mut username, mut username_field) =
            (RawKind::Bearer, None, None, None, None);
        match &spec.kind {
            CredentialKind::Header { header: name, prefix: before, .. } => {
                kind = RawKind::Header;
                header = Some(name.as_str().to_owned());
                prefix = Some(before.clone()).filter(|prefix| !prefix.is_empty());
            }
            CredentialKind::Bearer { .. } => {}
            CredentialKind::Basic { username: name, .. } => {
                kind = RawKind::Basic;
                match name {
                    Username::Is(name) => username = Some(name.clone()),
                    Username::Field(field) => username_field = Some(field.clone()),
                }
            }
            CredentialKind::ClientCredentials { .. } => kind = RawKind::Oauth,
            CredentialKind::TokenExchange { .. } => kind = RawKind::TokenExchange,
            CredentialKind::ClientCertificate { certificate, .. } => {
                kind = RawKind::ClientCertificate;
                match certificate {
                    CertificateAt::WithKey => {}
                    CertificateAt::File(file) => certificate_file = Some(file.clone()),
                    CertificateAt::Field(field) => certificate_field = Some(field.clone()),
                }
            }
        }
        RawCredential {
            name: spec.name.clone(),
            callers: credential.callers.clone(),
            agents: credential.agents.clone(),
            workspaces: credential.workspaces.clone(),
            kind,
            secret: spec.source().into(),
            header,
            prefix,
            username,
            username_field,
            certificate_file,
            certificate_field,
            subject,
            subject_audience,
            token_url: endpoint.map(|endpoint| endpoint.url.to_string()),
            client_id: endpoint.map(|endpoint| endpoint.client_id.clone()),
            client_auth: endpoint.map(|endpoint| match endpoint.client_auth {
                ClientAuth::Basic => RawClientAuth::ClientSecretBasic,
                ClientAuth::Post => RawClientAuth::ClientSecretPost,
            }),
            scope: endpoint.and_then(|endpoint| endpoint.scope.clone()),
            audience: endpoint.and_then(|endpoint| endpoint.audience.clone()),
            resource: endpoint.and_then(|endpoint| endpoint.resource.clone()),
            tls: endpoint.map(|endpoint| (&endpoint.trust).into()).unwrap_or_default(),
        }
    }
}

impl From<&Source> for RawSource {
    fn from(source: &Source) -> Self {
        let none = RawSource::default();
        match source.clone() {
            Source::File(file) => RawSource { file: Some(file), ..none },
            Source::Env(name) => RawSource { env: Some(name), ..none },
            Source::Command(Command { argv, timeout, cache, environment }) => RawSource {
                command: Some(argv),
                timeout: Some(Span(timeout)),
                cache: Some(Span(cache)),
                environment: Some(environment).filter(|names| !names.is_empty()),
                ..none
            },
            Source::Vault(VaultSecret { server, path, field, refresh, parameters }) => RawSource {
                vault: Some(server),
                path: Some(path),
                field: Some(field),
                refresh: Some(Span(refresh)),
                parameters,
                ..none
            },
        }
    }
}

impl From<&Trust> for RawTrust {
    fn from(trust: &Trust) -> Self {
        Self { ca_file: trust.ca_file.clone(), include_system_cas: trust.include_system_cas }
    }
}

impl From<&VaultSpec> for RawVault {
    fn from(vault: &VaultSpec) -> Self {
        let (token, approle) = match &vault.auth {
            VaultAuth::Token(source) => (Some(source.into()), None),
            VaultAuth::AppRole { mount, role_id, secret_id } => {
                (None, Some(RawAppRole { role_id: role_id.clone(), secret_id: secret_id.into(), mount: mount.clone() }))
            }
        };
        RawVault {
            address: vault.address.to_string(),
            namespace: vault.namespace.clone(),
            token,
            approle,
            tls: (&vault.trust).into(),
        }
    }
}

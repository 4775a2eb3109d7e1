//! An authority of one machine's own, by which its programs believe that they speak with the server outside.

use base64::{Engine, engine::general_purpose::STANDARD};
use casemate_proto::{control::Trust, egress::Host};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use std::{fmt::Write as _, sync::Arc};

/// The most that is given to a machine of the host's own authorities, in bytes: control messages are short.
const ROOTS_BYTES: usize = 768 << 10;

/// Signs for the servers outside. Its key leaves this process never and ends with the machine.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// Of all certificates that it signs.
    key: KeyPair,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthorityError {
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    #[error("cannot use a certificate")]
    Tls(#[from] rustls::Error),
}

impl Authority {
    pub(super) fn new() -> Result<Self, AuthorityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "authority of one casemate machine");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        Ok(Self { issuer, key: KeyPair::generate()? })
    }

    /// What programs of the machine are to trust: this, and what the host trusts.
    pub(super) fn trust(&self, roots: &[CertificateDer<'_>]) -> Trust {
        let authority = self.issuer.pem();
        let mut all = authority.clone();
        for root in roots {
            let pem = pem(root);
            if all.len() + pem.len() > ROOTS_BYTES {
                break;
            }
            all.push_str(&pem);
        }
        Trust { authority, authorities: all }
    }

    /// What a server of that name says in TLS. It speaks HTTP/1.1 alone.
    pub(super) fn server(&self, host: &Host) -> Result<ServerConfig, AuthorityError> {
        let name = match host {
            Host::Name(name) => name.clone(),
            Host::Address(address) => address.to_string(),
        };
        let mut params = CertificateParams::new([name])?;
        params.distinguished_name.push(DnType::CommonName, "through casemate");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // Asked for by strict clients, among them Python's since 3.13.
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&self.key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(self.key.serialize_der().into());
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Each connection is judged anew; none resumes another.
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

/// RFC 7468, section 3.
fn pem(certificate: &CertificateDer<'_>) -> String {
    const COLUMNS: usize = 64;
    let text = STANDARD.encode(certificate);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    let mut rest = &*text;
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(COLUMNS));
        // Writing to a string cannot fail.
        let _ = writeln!(pem, "{line}");
        rest = after;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

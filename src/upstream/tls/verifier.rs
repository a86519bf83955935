//! Whether a server is who it says it is.
//!
//! Differs from rustls' own verifier where a server shows the very certificate that the operator has named. That
//! may be one of an authority (`CA:TRUE`), such as `openssl req -x509` makes, and if it has no
//! `subjectAltName`, the common name of its subject counts. Other clients do the same with it, and only
//! its server has its key.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

use super::Authorities;

#[derive(Debug)]
pub(super) struct Verifier {
    by_authority: Arc<WebPkiServerVerifier>,
    /// What the operator has named.
    named: Vec<CertificateDer<'static>>,
}

impl Verifier {
    /// `None` if no authority is believed.
    pub(super) fn new(authorities: Authorities, provider: Arc<CryptoProvider>) -> Option<Self> {
        let Authorities { roots, named } = authorities;
        let by_authority =
            WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build().ok()?;
        Some(Self { by_authority, named })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.by_authority.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        // Its dates are looked at before that, and its name last of all.
        let Err(error) = verified else { return verified };
        let is_named = self.named.iter().any(|named| named == end_entity);
        match (is_named, is_of_an_authority(&error)) {
            (true, true) => verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)
                .or_else(|error| without_alternatives(error, end_entity, server_name)),
            (true, false) => without_alternatives(error, end_entity, server_name),
            (false, true) => Err(Error::General(NOT_NAMED.to_owned())),
            (false, false) => Err(error),
        }
        .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_authority.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_authority.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_authority.supported_verify_schemes()
    }
}

const NOT_NAMED: &str = "the server shows the certificate of an authority (CA:TRUE) as its own; name that very \
                         certificate as upstream.tls.ca_file (or --ca-file), or give the server one with CA:FALSE";

fn is_of_an_authority(error: &Error) -> bool {
    let Error::InvalidCertificate(CertificateError::Other(error)) = error else { return false };
    matches!(error.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

/// What was wrong with a certificate that was named, unless it was that it has no `subjectAltName` and its
/// subject is the server.
fn without_alternatives(
    error: Error,
    certificate: &CertificateDer<'_>,
    server_name: &ServerName<'_>,
) -> Result<(), Error> {
    match &error {
        Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. })
            if presented.is_empty() => {}
        _ => return Err(error),
    }
    let anchor = webpki::anchor_from_trusted_cert(certificate).map_err(|_| error.clone())?;
    if has_common_name(&anchor.subject, &server_name.to_str()) { Ok(()) } else { Err(error) }
}

/// The type of an attribute of a subject: 2.5.4.3, in DER.
const COMMON_NAME: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x03];

/// Whether a subject has this common name. The operator has named its certificate, so it was not made to be
/// misread.
fn has_common_name(subject: &[u8], name: &str) -> bool {
    let places = subject.windows(COMMON_NAME.len()).enumerate();
    places.filter(|(_, window)| *window == COMMON_NAME).any(|(at, _)| {
        let Some([_kind, length, rest @ ..]) = subject.get(at + COMMON_NAME.len()..) else { return false };
        let value = rest.get(..usize::from(*length));
        value.is_some_and(|value| value.eq_ignore_ascii_case(name.as_bytes()))
    })
}

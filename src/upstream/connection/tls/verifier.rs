//! Verifies that a server is who it claims to be.
//!
//! Differs from rustls' own verifier where a server shows the very certificate that the operator has configured.
//! That may be one of an authority (`CA:TRUE`), such as `openssl req -x509` makes, and if it has no
//! `subjectAltName`, the common name of its subject counts. Other clients do the same with it, and only
//! its server has its key.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

use super::files::TrustedAuthorities;

#[derive(Debug)]
pub(in crate::upstream) struct Verifier {
    webpki_verifier: Arc<WebPkiServerVerifier>,
    /// What the operator has configured.
    configured: Vec<CertificateDer<'static>>,
}

impl Verifier {
    /// `None` if no authority is trusted.
    pub(in crate::upstream) fn new(
        authorities: TrustedAuthorities,
        provider: Arc<CryptoProvider>,
    ) -> Option<Self> {
        let TrustedAuthorities { roots, configured } = authorities;
        let webpki_verifier =
            WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build().ok()?;
        Some(Self { webpki_verifier, configured })
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
        let verified = self.webpki_verifier.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        // webpki checks its dates before that, and its name last of all.
        let Err(error) = verified else { return verified };
        let is_configured = self.configured.iter().any(|configured| configured == end_entity);
        match (is_configured, is_ca_as_server(&error)) {
            (true, true) => verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)
                .or_else(|error| accept_common_name(error, end_entity, server_name)),
            (true, false) => accept_common_name(error, end_entity, server_name),
            (false, true) => Err(Error::General(NOT_CONFIGURED.to_owned())),
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
        self.webpki_verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki_verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki_verifier.supported_verify_schemes()
    }
}

const NOT_CONFIGURED: &str = "the server shows the certificate of an authority (CA:TRUE) as its own; name that very \
                         certificate as upstream.tls.ca_file (or --ca-file), or give the server one with CA:FALSE";

fn is_ca_as_server(error: &Error) -> bool {
    let Error::InvalidCertificate(CertificateError::Other(error)) = error else { return false };
    matches!(error.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

/// The verdict on a configured certificate: accepted if all that was wrong is that it has no `subjectAltName`, and
/// the common name of its subject is the server.
fn accept_common_name(
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

/// The attribute type of a common name: 2.5.4.3, in DER.
const COMMON_NAME: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x03];

/// Whether a subject has this common name. The operator has configured its certificate, so it was not made to be
/// misread.
fn has_common_name(subject: &[u8], name: &str) -> bool {
    let windows = subject.windows(COMMON_NAME.len()).enumerate();
    windows.filter(|(_, window)| *window == COMMON_NAME).any(|(at, _)| {
        let Some([_kind, length, rest @ ..]) = subject.get(at + COMMON_NAME.len()..) else { return false };
        let value = rest.get(..usize::from(*length));
        value.is_some_and(|value| value.eq_ignore_ascii_case(name.as_bytes()))
    })
}

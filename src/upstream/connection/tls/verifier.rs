//! Verifies that a server is who it claims to be.
//!
//! Differs from rustls' own verifier where a server shows the very certificate that the operator has configured.
//! Whoever has signed it need not be known, it may be one of an authority (`CA:TRUE`), such as `openssl req -x509`
//! makes, and if it has no `subjectAltName`, the common name of its subject counts. curl does the same with
//! `--cacert`, and only its server has its key. All else is checked: its dates, its purpose, its name.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

use crate::certificates::TrustedAuthorities;

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

    /// The verdict on a configured certificate that webpki refuses.
    fn verify_configured(
        &self,
        certificate: &CertificateDer<'_>,
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        // By itself, so that no other certificate of the server is to blame.
        let verified = self.webpki_verifier.verify_server_cert(certificate, &[], server_name, &[], now);
        let Err(error) = verified else { return Ok(()) };
        // webpki checks its dates before these, and its name last of all. The signature is that of another
        // authority of the same name.
        let is_name_unchecked = is_caused_by(&error, &webpki::Error::CaUsedAsEndEntity)
            || matches!(
                error,
                Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)
            );
        let verified = if is_name_unchecked {
            verify_server_name(&ParsedCertificate::try_from(certificate)?, server_name)
        } else {
            Err(explained(error))
        };
        verified.or_else(|error| accept_common_name(error, certificate, server_name))?;
        if may_serve_tls(certificate) { Ok(()) } else { Err(CertificateError::InvalidPurpose.into()) }
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
        let Err(error) = verified else { return verified };
        if self.configured.iter().any(|configured| configured == end_entity) {
            self.verify_configured(end_entity, server_name, now)?;
            return Ok(ServerCertVerified::assertion());
        }
        Err(if is_caused_by(&error, &webpki::Error::CaUsedAsEndEntity) {
            Error::General(NOT_CONFIGURED.to_owned())
        } else {
            explained(error)
        })
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

const VERSION_1: &str = "the server shows a certificate of X.509 version 1, which cannot be verified; make one of \
                         version 3, as with openssl req -x509 -addext subjectAltName=DNS:HOST";

fn is_caused_by(error: &Error, cause: &webpki::Error) -> bool {
    let Error::InvalidCertificate(CertificateError::Other(error)) = error else { return false };
    error.0.downcast_ref() == Some(cause)
}

/// The error, in words if it says nothing to who has to mend it.
fn explained(error: Error) -> Error {
    if is_caused_by(&error, &webpki::Error::UnsupportedCertVersion) {
        return Error::General(VERSION_1.to_owned());
    }
    error
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
    let is_match = common_name(&anchor.subject).is_some_and(|common_name| names(common_name, server_name));
    if is_match { Ok(()) } else { Err(error) }
}

/// The attribute type of a common name: 2.5.4.3, in DER.
const COMMON_NAME: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x03];

/// The common name of a subject; the last one, as curl has it. The operator has configured its certificate, so it
/// was not made to be misread.
fn common_name(subject: &[u8]) -> Option<&[u8]> {
    let at = subject.windows(COMMON_NAME.len()).rposition(|window| window == COMMON_NAME)?;
    let [_kind, length, rest @ ..] = subject.get(at + COMMON_NAME.len()..)? else { return None };
    rest.get(..usize::from(*length))
}

/// Whether a common name is that of the server. `*` stands for the first of three labels or more.
fn names(common_name: &[u8], server_name: &ServerName<'_>) -> bool {
    let name = server_name.to_str();
    let host = match (common_name.strip_prefix(b"*."), server_name) {
        (Some(domain), ServerName::DnsName(_)) if domain.contains(&b'.') => {
            let Some((label, of_name)) = name.split_once('.') else { return false };
            return !label.is_empty() && domain.eq_ignore_ascii_case(of_name.as_bytes());
        }
        _ => name.as_bytes(),
    };
    common_name.eq_ignore_ascii_case(host)
}

/// The ids of the extensions `keyUsage` and `extendedKeyUsage`, and that of the purpose `serverAuth`, in DER.
const KEY_USAGE: [u8; 5] = [0x06, 0x03, 0x55, 0x1d, 0x0f];
const EXTENDED_KEY_USAGE: [u8; 5] = [0x06, 0x03, 0x55, 0x1d, 0x25];
const SERVER_AUTH: [u8; 10] = [0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];

/// The usages of which a server has one: `digitalSignature`, `keyEncipherment`, `keyAgreement`.
const SERVER_USAGES: u8 = 0x80 | 0x20 | 0x08;

/// Whether the purposes of a configured certificate, if it has any, include that of a TLS server. webpki does not
/// look at them in one of an authority, nor at `keyUsage` at all; OpenSSL, and so curl, does.
fn may_serve_tls(certificate: &[u8]) -> bool {
    allows(
        certificate,
        KEY_USAGE,
        |value| matches!(value, [0x03, _, _, usages, ..] if usages & SERVER_USAGES != 0),
    ) && allows(certificate, EXTENDED_KEY_USAGE, |value| {
        value.windows(SERVER_AUTH.len()).any(|window| window == SERVER_AUTH)
    })
}

/// Whether an extension is missing, or `is_good`.
fn allows(certificate: &[u8], extension: [u8; 5], is_good: impl Fn(&[u8]) -> bool) -> bool {
    let Some(at) = certificate.windows(extension.len()).position(|window| window == extension) else {
        return true;
    };
    let rest = certificate.get(at + extension.len()..).unwrap_or_default();
    // It may be marked as critical.
    let rest = rest.strip_prefix(&[0x01, 0x01, 0xff]).unwrap_or(rest);
    let [0x04, length, value @ ..] = rest else { return false };
    value.get(..usize::from(*length)).is_some_and(is_good)
}

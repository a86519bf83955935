//! Certificates and keys in PEM files, and the authorities that the system trusts.

use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::file;

/// Why a file of certificates or keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read.
    #[error("{0}; {advice}", advice = .0.advice())]
    File(#[from] file::Error),
    /// The file is not PEM.
    #[error("is not PEM: {0}")]
    NotPem(#[from] pem::Error),
    /// The file does not contain what is looked for.
    #[error("holds no {0} in PEM")]
    NotFound(&'static str),
    /// A malformed certificate.
    #[error("holds a certificate that cannot be used: {0}")]
    Certificate(rustls::Error),
    /// The system trusts no authorities.
    #[error(
        "the system trusts no certificate authority{0}; install the package ca-certificates, or name a file"
    )]
    NoRoots(String),
    /// The certificate and the key are not a pair, or of an unknown kind.
    #[error("certificate and key cannot be used together: {0}")]
    Identity(rustls::Error),
    /// A name that no certificate could be for.
    #[error("{0:?} is not a host name or IP address")]
    Name(String),
}

/// Authorities whose certificates are trusted.
#[derive(Clone, Debug)]
pub struct TrustedAuthorities {
    pub(crate) roots: RootCertStore,
    /// Those that the operator has configured, as they are: a server may show one of them as its own.
    pub(crate) configured: Vec<CertificateDer<'static>>,
}

impl TrustedAuthorities {
    /// Whether the operator has configured a certificate of X.509 version 1. An authority may have one, a server
    /// may not.
    pub fn has_version_1(&self) -> bool {
        let is_version_1 = |certificate| {
            matches!(webpki::EndEntityCert::try_from(certificate), Err(webpki::Error::UnsupportedCertVersion))
        };
        self.configured.iter().any(is_version_1)
    }
}

/// The authorities in a PEM file.
pub fn read_authorities(path: &Path) -> Result<TrustedAuthorities, TlsError> {
    let configured = read_certificates(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in &configured {
        roots.add(certificate.clone()).map_err(TlsError::Certificate)?;
    }
    Ok(TrustedAuthorities { roots, configured })
}

/// The authorities that this system trusts (`SSL_CERT_FILE` and `SSL_CERT_DIR` are respected).
pub fn system_authorities() -> Result<TrustedAuthorities, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Some systems have certificates that can no longer be parsed.
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let why = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        return Err(TlsError::NoRoots(why));
    }
    Ok(TrustedAuthorities { roots, configured: Vec::new() })
}

/// The certificates in a PEM file.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = file::read_without_bom(path, MAX_PEM_BYTES)?;
    let found = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>()?;
    if found.is_empty() { Err(TlsError::NotFound("certificate")) } else { Ok(found) }
}

/// The key in a PEM file.
pub fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = file::read_without_bom(path, MAX_PEM_BYTES)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::NotFound("private key"),
        other => other.into(),
    })
}

/// Bytes of a file with certificates or a key. The authorities that a system trusts have a quarter of a MiB.
const MAX_PEM_BYTES: usize = 16 << 20;

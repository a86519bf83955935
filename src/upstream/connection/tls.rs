//! TLS to Rails: the trusted authorities, the client certificate, and the name that Rails has to prove.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use self::verifier::Verifier;
use crate::file;
use crate::upstream::servers::server::Protocol;

mod verifier;

/// The name of HTTP/2 in ALPN (RFC 9113 §3.1).
const HTTP2: &[u8] = b"h2";

/// The TLS settings of connections to one server.
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<ClientConfig>,
    protocol: Protocol,
    name: ServerName<'static>,
}

/// A client certificate: the chain, and the key of its first certificate.
#[derive(Debug)]
pub struct ClientIdentity {
    /// The certificate, and intermediate ones up to an authority that Rails trusts.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key of the first certificate.
    pub key: PrivateKeyDer<'static>,
}

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
    roots: RootCertStore,
    /// Those that the operator has configured, as they are: a server may show one of them as its own.
    configured: Vec<CertificateDer<'static>>,
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

impl fmt::Display for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name.to_str())
    }
}

impl Tls {
    /// Trusts `authorities` to prove that a server is `name`, and shows `identity` to a server that asks for it.
    pub fn new(
        authorities: TrustedAuthorities,
        identity: Option<&ClientIdentity>,
        name: &str,
        protocol: Protocol,
    ) -> Result<Self, TlsError> {
        let name = ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Name(name.to_owned()))?;
        // Explicit: with another provider in the process, there would be no default one.
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            Verifier::new(authorities, Arc::clone(&provider)).ok_or(TlsError::NotFound("certificate"))?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Certificate)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(ClientIdentity { chain, key }) => {
                builder.with_client_auth_cert(chain.clone(), key.clone_key()).map_err(TlsError::Identity)?
            }
        };
        config.alpn_protocols = vec![match protocol {
            Protocol::Http1 => b"http/1.1".to_vec(),
            Protocol::Http2 => HTTP2.to_vec(),
        }];
        Ok(Self { config: Arc::new(config), protocol, name })
    }

    pub(in crate::upstream) async fn connect(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let stream = TlsConnector::from(Arc::clone(&self.config)).connect(self.name.clone(), stream).await?;
        // HTTP/1.1 is spoken without negotiation.
        if self.protocol == Protocol::Http2 && stream.get_ref().1.alpn_protocol() != Some(HTTP2) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not speak HTTP/2"));
        }
        Ok(stream)
    }
}

//! TLS to Rails: whom we believe, who we are, and by which name Rails has to prove itself.

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
use super::server::Protocol;
use crate::file;

mod verifier;

/// As it is called where the two sides agree on it (RFC 9113 §3.1).
const HTTP2: &[u8] = b"h2";

/// How connections to Rails are secured.
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<ClientConfig>,
    protocol: Protocol,
    name: ServerName<'static>,
}

/// Who we are: a chain of certificates, and the key of the first.
#[derive(Debug)]
pub struct Identity {
    /// The certificate, and those in between up to one that Rails knows.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

/// Why a file of certificates or keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be used, whatever is in it.
    #[error("{0}; {advice}", advice = .0.advice())]
    File(#[from] file::Error),
    /// It is no PEM.
    #[error("is no PEM: {0}")]
    NoPem(#[from] pem::Error),
    /// There is nothing in it that is looked for.
    #[error("holds no {0} in PEM")]
    Nothing(&'static str),
    /// A certificate that is none.
    #[error("holds a certificate that cannot be used: {0}")]
    Certificate(rustls::Error),
    /// The system has no certificates that it trusts.
    #[error(
        "the system trusts no certificate authority{0}; install the package ca-certificates, or name a file"
    )]
    NoRoots(String),
    /// The certificate and the key are not a pair, or of a kind that is not known.
    #[error("certificate and key cannot be used together: {0}")]
    Identity(rustls::Error),
    /// No name that a certificate could be for.
    #[error("{0:?} is no host name or IP address")]
    Name(String),
}

/// Who is believed about who is who.
#[derive(Clone, Debug)]
pub struct Authorities {
    roots: RootCertStore,
    /// Those that the operator has named, as they are: a server may show one of them as its own.
    named: Vec<CertificateDer<'static>>,
}

/// The authorities in a PEM file.
pub fn authorities(path: &Path) -> Result<Authorities, Error> {
    let named = certificates(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in &named {
        roots.add(certificate.clone()).map_err(Error::Certificate)?;
    }
    Ok(Authorities { roots, named })
}

/// The authorities that this system trusts (`SSL_CERT_FILE` and `SSL_CERT_DIR` are obeyed).
pub fn system_authorities() -> Result<Authorities, Error> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Some systems have certificates that nobody can read any more.
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let why = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        return Err(Error::NoRoots(why));
    }
    Ok(Authorities { roots, named: Vec::new() })
}

/// The certificates in a PEM file.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = file::read_unmarked(path, MOST)?;
    let found = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>()?;
    if found.is_empty() { Err(Error::Nothing("certificate")) } else { Ok(found) }
}

/// The key in a PEM file.
pub fn key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let text = file::read_unmarked(path, MOST)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound => Error::Nothing("private key"),
        other => other.into(),
    })
}

/// Bytes of a file with certificates or a key. Those that a system trusts have a quarter of a MiB.
const MOST: usize = 16 << 20;

impl fmt::Display for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name.to_str())
    }
}

impl Tls {
    /// Believes what `authorities` say about who is `name`, and shows `identity` to a server that asks.
    pub fn new(
        authorities: Authorities,
        identity: Option<&Identity>,
        name: &str,
        protocol: Protocol,
    ) -> Result<Self, Error> {
        let name = ServerName::try_from(name.to_owned()).map_err(|_| Error::Name(name.to_owned()))?;
        // By name: there may be another provider in the process, and then none is the default.
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            Verifier::new(authorities, Arc::clone(&provider)).ok_or(Error::Nothing("certificate"))?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(Error::Certificate)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(Identity { chain, key }) => {
                builder.with_client_auth_cert(chain.clone(), key.clone_key()).map_err(Error::Identity)?
            }
        };
        config.alpn_protocols = vec![match protocol {
            Protocol::Http1 => b"http/1.1".to_vec(),
            Protocol::Http2 => HTTP2.to_vec(),
        }];
        Ok(Self { config: Arc::new(config), protocol, name })
    }

    pub(super) async fn connect(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let stream = TlsConnector::from(Arc::clone(&self.config)).connect(self.name.clone(), stream).await?;
        // HTTP/1.1 is what is spoken without any agreement.
        if self.protocol == Protocol::Http2 && stream.get_ref().1.alpn_protocol() != Some(HTTP2) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not speak HTTP/2"));
        }
        Ok(stream)
    }
}

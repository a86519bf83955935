//! TLS to Rails: the trusted authorities, the client certificate, and the name that Rails has to prove.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use self::verifier::Verifier;
use super::error::ConnectError;
use super::protocol::Protocol;
use crate::certificates::{TlsError, TrustedAuthorities};

mod verifier;

/// The name of HTTP/2 in ALPN (RFC 9113 §3.1).
const HTTP2: &[u8] = b"h2";

/// The TLS settings of connections to one server.
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<ClientConfig>,
    protocol: Protocol,
    name: ServerName<'static>,
    /// Of all that it was made of.
    made_of: TlsIdentity,
}

/// Tells whether the TLS settings of two connections are the same: the name, the authorities, the client certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) struct TlsIdentity([u8; 32]);

/// A client certificate: the chain, and the key of its first certificate.
#[derive(Debug)]
pub struct ClientIdentity {
    /// The certificate, and intermediate ones up to an authority that Rails trusts.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key of the first certificate.
    pub key: PrivateKeyDer<'static>,
}

impl TlsIdentity {
    fn new(authorities: &TrustedAuthorities, identity: Option<&ClientIdentity>, name: &str) -> Self {
        let mut hash = digest::Context::new(&digest::SHA256);
        let mut add = |part: &[u8]| {
            hash.update(&part.len().to_be_bytes());
            hash.update(part);
        };
        add(name.as_bytes());
        for root in &authorities.roots.roots {
            add(&root.subject);
            add(&root.subject_public_key_info);
            add(root.name_constraints.as_deref().unwrap_or_default());
        }
        for certificate in &authorities.configured {
            add(certificate);
        }
        // Between two lists of certificates.
        add(b"");
        if let Some(ClientIdentity { chain, key }) = identity {
            for certificate in chain {
                add(certificate);
            }
            add(key.secret_der());
        }
        let mut bytes = [0; 32];
        for (byte, hashed) in bytes.iter_mut().zip(hash.finish().as_ref()) {
            *byte = *hashed;
        }
        Self(bytes)
    }
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        (self.made_of, self.protocol) == (other.made_of, other.protocol)
    }
}

impl Eq for Tls {}

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
        let made_of = TlsIdentity::new(&authorities, identity, name);
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
        Ok(Self { config: Arc::new(config), protocol, name, made_of })
    }

    /// The same for settings that are the same.
    pub(in crate::upstream) fn identity(&self) -> TlsIdentity {
        self.made_of
    }

    pub(in crate::upstream) async fn connect(
        &self,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, ConnectError> {
        let stream = self.handshake(self.name.clone(), stream).await?;
        // HTTP/1.1 is spoken without negotiation.
        if self.protocol == Protocol::Http2 && stream.get_ref().1.alpn_protocol() != Some(HTTP2) {
            return Err(ConnectError::tls("it does not speak HTTP/2"));
        }
        Ok(stream)
    }

    /// For another protocol than HTTP, which is spoken without negotiation.
    pub(crate) fn without_alpn(mut self) -> Self {
        Arc::make_mut(&mut self.config).alpn_protocols.clear();
        self
    }

    /// A connection to a server that has to prove to be `name`, whatever name the settings have.
    pub(crate) async fn connect_as(
        &self,
        name: &str,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, ConnectError> {
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| ConnectError::tls(TlsError::Name(name.to_owned()).to_string()))?;
        self.handshake(name, stream).await
    }

    async fn handshake(
        &self,
        name: ServerName<'static>,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, ConnectError> {
        let connector = TlsConnector::from(Arc::clone(&self.config));
        connector.connect(name, stream).await.map_err(ConnectError::handshake)
    }
}

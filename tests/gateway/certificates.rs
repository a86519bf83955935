//! A certificate authority for tests.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::harness::Scratch;

/// Signs the certificates of servers and clients. Only peers that were given its certificate trust it.
pub struct CertificateAuthority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl CertificateAuthority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    /// Writes its own certificate to a file.
    pub fn write_certificate(&self, dir: &Scratch, name: &str) -> PathBuf {
        let path = dir.file(name);
        fs::write(&path, self.issuer.pem()).unwrap();
        path
    }

    /// Writes a new certificate for `name` and its key to files.
    pub fn issue_to_files(&self, dir: &Scratch, name: &str) -> [PathBuf; 2] {
        let (certificate, key) = self.issue(name);
        let paths = [dir.file(&format!("{name}.pem")), dir.file(&format!("{name}.key"))];
        fs::write(&paths[0], certificate.pem()).unwrap();
        fs::write(&paths[1], key.serialize_pem()).unwrap();
        paths
    }

    fn issue(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// A server named `name`; with `clients`, it requires a client certificate of that authority.
    pub fn tls_acceptor(&self, name: &str, clients: Option<&Self>) -> TlsAcceptor {
        TlsAcceptor::from(Arc::new(self.server_config(name, clients)))
    }

    /// A server that offers these protocols (ALPN).
    pub fn tls_acceptor_with_protocols(&self, name: &str, protocols: &[&[u8]]) -> TlsAcceptor {
        let mut config = self.server_config(name, None);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    /// A client that believes this authority; with a certificate of `own`, if there is one.
    pub fn client_config(&self, own: Option<&Self>) -> Arc<ClientConfig> {
        self.client_config_with(own, rustls::ALL_VERSIONS)
    }

    /// As [`client_config`](Self::client_config), with these versions of TLS.
    pub fn client_config_with(
        &self,
        own: Option<&Self>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
        let builder = builder.with_root_certificates(roots);
        Arc::new(match own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let (certificate, key) = own.issue("client");
                let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
                builder.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
            }
        })
    }

    /// Writes a certificate for `name` that is valid in these days from now, and its key to files.
    pub fn issue_for_days(&self, dir: &Scratch, name: &str, days: std::ops::Range<i64>) -> [PathBuf; 2] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let at = |days: i64| {
            let seconds = i64::try_from(now).unwrap() + days * 24 * 3600;
            time::OffsetDateTime::from_unix_timestamp(seconds).unwrap()
        };
        (params.not_before, params.not_after) = (at(days.start), at(days.end));
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let paths = [dir.file(&format!("{name}.pem")), dir.file(&format!("{name}.key"))];
        fs::write(&paths[0], certificate.pem()).unwrap();
        fs::write(&paths[1], key.serialize_pem()).unwrap();
        paths
    }

    fn server_config(&self, name: &str, clients: Option<&Self>) -> ServerConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(clients.issuer.der().clone()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let (certificate, key) = self.issue(name);
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        builder.with_single_cert(vec![certificate.der().clone()], key).unwrap()
    }
}

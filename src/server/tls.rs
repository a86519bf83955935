//! TLS of a listener: its certificate can be exchanged while it runs, for the connections that are made from then on.
//!
//! With the certificate the whole configuration is exchanged, so that the authorities of clients are, too, and no
//! session goes on that an old one has begun.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{ServerConfig, SupportedProtocolVersion};
use tokio_rustls::TlsAcceptor;

use crate::certificates::{self, TlsError};

/// The files of a listener's TLS, and the oldest version that it accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTlsSettings {
    /// The certificate, and intermediate ones up to an authority that clients trust.
    pub certificate_file: PathBuf,
    /// The key of the first certificate.
    pub key_file: PathBuf,
    /// If it is there, a client has to show a certificate of one of these authorities.
    pub client_ca_file: Option<PathBuf>,
    /// Default: 1.2.
    pub min_version: TlsVersion,
    /// Offer HTTP/2 beside HTTP/1.1. Default: false.
    pub http2: bool,
}

/// A version of TLS. Older ones are not spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2.
    #[default]
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// Why TLS cannot be set up: the file, its key in the configuration, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{} {error}", file.display())]
pub struct ServerTlsError {
    /// `certificate_file`, `key_file` or `client_ca_file`.
    pub key: &'static str,
    /// The path.
    pub file: PathBuf,
    /// What is wrong.
    pub error: TlsError,
}

/// The TLS of one listener. Clones share the certificate.
#[derive(Clone, Debug)]
pub struct ServerTls(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    settings: ServerTlsSettings,
    current: ArcSwap<LoadedTls>,
    /// The files when they were last loaded, or could not be.
    seen: Mutex<[Option<FileId>; 3]>,
    reloads: AtomicU64,
    failed_reloads: AtomicU64,
}

#[derive(Debug)]
struct LoadedTls {
    config: Arc<ServerConfig>,
    not_before: i64,
    not_after: i64,
}

/// The device, the inode, the time of the last change in seconds and nanoseconds, and the size.
type FileId = (u64, u64, i64, i64, u64);

impl PartialEq for ServerTls {
    fn eq(&self, other: &Self) -> bool {
        self.0.settings == other.0.settings
    }
}

impl Eq for ServerTls {}

impl ServerTls {
    /// Reads the files.
    pub fn load(settings: ServerTlsSettings) -> Result<Self, ServerTlsError> {
        let seen = Mutex::new(file_ids(&settings));
        let current = ArcSwap::from_pointee(load(&settings)?);
        let (reloads, failed_reloads) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self(Arc::new(Shared { settings, current, seen, reloads, failed_reloads })))
    }

    /// Reads the files again, for connections that are made from now on. After an error, what was there stays.
    pub fn reload(&self) -> Result<(), ServerTlsError> {
        *self.0.seen.lock() = file_ids(&self.0.settings);
        let loaded = load(&self.0.settings);
        let count = if loaded.is_ok() { &self.0.reloads } else { &self.0.failed_reloads };
        count.fetch_add(1, Ordering::Relaxed);
        self.0.current.store(Arc::new(loaded?));
        Ok(())
    }

    /// As [`reload`](Self::reload), if one of the files is another one than when they were last read.
    pub fn reload_if_changed(&self) -> Option<Result<(), ServerTlsError>> {
        let is_changed = *self.0.seen.lock() != file_ids(&self.0.settings);
        is_changed.then(|| self.reload())
    }

    /// When the certificate expires, in seconds since the Unix epoch.
    pub fn not_after(&self) -> i64 {
        self.0.current.load().not_after
    }

    /// When the certificate begins to be valid, in seconds since the Unix epoch.
    pub fn not_before(&self) -> i64 {
        self.0.current.load().not_before
    }

    /// How often the files were read again, and how often they could not be used.
    pub fn reload_counts(&self) -> [u64; 2] {
        [&self.0.reloads, &self.0.failed_reloads].map(|count| count.load(Ordering::Relaxed))
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.0.current.load().config))
    }
}

/// The name of HTTP/2 in ALPN.
pub(super) const ALPN_HTTP2: &[u8] = b"h2";

fn load(settings: &ServerTlsSettings) -> Result<LoadedTls, ServerTlsError> {
    let ServerTlsSettings { certificate_file, key_file, client_ca_file, min_version, http2 } = settings;
    let of = |key, file: &Path| {
        let file = file.to_owned();
        move |error| ServerTlsError { key, file, error }
    };
    let of_certificate = || of("certificate_file", certificate_file);
    let chain = certificates::read_certificates(certificate_file).map_err(of_certificate())?;
    let (not_before, not_after) = validity(chain.first()).map_err(of_certificate())?;
    let key = certificates::read_key(key_file).map_err(of("key_file", key_file))?;
    // Explicit: with another provider in the process, there would be no default one.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions: &[&SupportedProtocolVersion] = match min_version {
        TlsVersion::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsVersion::Tls13 => &[&rustls::version::TLS13],
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(TlsError::Certificate)
        .map_err(of_certificate())?;
    let builder = match client_ca_file {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let unusable = |error: String| TlsError::Certificate(rustls::Error::General(error));
            let authorities = certificates::read_authorities(file).map_err(of("client_ca_file", file))?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities.roots), provider);
            let verifier = verifier.build().map_err(|error| unusable(error.to_string()));
            builder.with_client_cert_verifier(verifier.map_err(of("client_ca_file", file))?)
        }
    };
    let config = builder.with_single_cert(chain, key).map_err(TlsError::Identity);
    let mut config = config.map_err(of("key_file", key_file))?;
    let protocols: &[&[u8]] = if *http2 { &[ALPN_HTTP2, b"http/1.1"] } else { &[b"http/1.1"] };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(LoadedTls { config: Arc::new(config), not_before, not_after })
}

/// The first and the last second at which a certificate is valid.
fn validity(certificate: Option<&CertificateDer<'_>>) -> Result<(i64, i64), TlsError> {
    let certificate = certificate.ok_or(TlsError::NotFound("certificate"))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| TlsError::Certificate(rustls::Error::General(error.to_string())))?;
    let validity = parsed.validity();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// Those of the files themselves, whatever links lead to them. `None`: it is not there.
fn file_ids(settings: &ServerTlsSettings) -> [Option<FileId>; 3] {
    let files =
        [Some(&settings.certificate_file), Some(&settings.key_file), settings.client_ca_file.as_ref()];
    files.map(|file| {
        let metadata = std::fs::metadata(file?).ok()?;
        Some((metadata.dev(), metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
    })
}

/// How long after a change the files are read again, at most.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Reads the files of each listener again when they have changed. The listeners are given with their names.
pub async fn watch(listeners: Vec<(String, ServerTls)>) {
    while !listeners.is_empty() {
        tokio::time::sleep(POLL_INTERVAL).await;
        for (listener, tls) in &listeners {
            let of_task = tls.clone();
            // A file system may take its time.
            match tokio::task::spawn_blocking(move || of_task.reload_if_changed()).await {
                Ok(Some(Ok(()))) => {
                    tracing::info!(listener, not_after = tls.not_after(), "the certificate was reloaded");
                }
                // Logged once for each change: a file is written in pieces, or certificate and key one after the other.
                Ok(Some(Err(error))) => {
                    tracing::warn!(listener, %error, "the certificate cannot be reloaded; the old one stays in use");
                }
                Ok(None) | Err(_) => {}
            }
        }
    }
}

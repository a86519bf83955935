//! A Rails whose server certificate is a CA certificate, as `openssl req -x509` makes it.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use super::client::Request;
use super::fake_rails::FakeRails;
use super::harness::Setup;
use super::log;

fn ca_params(names: &[&str]) -> CertificateParams {
    let mut params =
        CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

/// A certificate and its key.
struct Identity {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl Identity {
    fn self_signed(params: &CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        Self { certificate: params.self_signed(&key).unwrap().der().clone(), key }
    }

    /// A certificate of X.509 version 1 for `localhost`. Its key is another one: clients fail before that matters.
    fn of_version_1() -> Self {
        use rustls::pki_types::pem::PemObject as _;
        let certificate = CertificateDer::from_pem_slice(VERSION_1.as_bytes()).unwrap();
        Self { certificate, key: KeyPair::generate().unwrap() }
    }

    /// The same, whether or not the key is that of the certificate.
    fn unchecked_tls_acceptor(&self) -> TlsAcceptor {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
        let key = provider.key_provider.load_private_key(key).unwrap();
        let certified = rustls::sign::CertifiedKey::new(vec![self.certificate.clone()], key);
        let config = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
        TlsAcceptor::from(Arc::new(config))
    }

    fn tls_acceptor(&self) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// `openssl x509 -req -signkey`, without extensions.
const VERSION_1: &str = "-----BEGIN CERTIFICATE-----
MIIBIzCBywIUcZ4879rNdbv6PraqhJ7BeNegZZkwCgYIKoZIzj0EAwIwFDESMBAG
A1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyOTIzNDAyOFoYDzIxMjYxMTA1MjM0MDI4
WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AARrO6LydSZPBzhLe2JhaaYOBm6felyFGqelgfE92z09fDDEACTpDxEuwdzexxh6
LT94pgU2MGImNFUSr+pki+M0MAoGCCqGSM49BAMCA0cAMEQCIGxHRqJX9jDGNrKb
rFV2ZnrsMae1AC/c4koXN256fHWaAiArnqwJi1hxSDBTDTEtl/g05weSzzGNQafu
XkNJKbHk+w==
-----END CERTIFICATE-----
";

fn write_ca_file(setup: &Setup, certificates: &[&CertificateDer<'_>]) -> PathBuf {
    use base64::Engine as _;
    let pem = certificates.iter().map(|certificate| {
        let text = base64::engine::general_purpose::STANDARD.encode(certificate);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    });
    let path = setup.dir.file("ca.pem");
    fs::write(&path, pem.collect::<String>()).unwrap();
    path
}

/// Sends a request to a Rails with this certificate, trusting these. Returns the logged error, if it failed.
async fn request_error(id: &str, shown: &Identity, named: &[&CertificateDer<'_>]) -> Option<String> {
    request_error_of(id, shown.tls_acceptor(), named).await
}

async fn request_error_of(id: &str, rails: TlsAcceptor, named: &[&CertificateDer<'_>]) -> Option<String> {
    let setup = Setup::new().over_tls();
    let named = write_ca_file(&setup, named);
    let harness = setup
        .text("upstream.tls.ca_file", &named.display().to_string())
        .start_with(FakeRails::listen_tls(rails).await);
    let response = harness.send(&Request::post("allowed").with_secret().header("X-Request-Id", id)).await;
    let line = log::wait_for_request_line(id).await;
    match response.status {
        200 => None,
        502 => {
            assert_eq!(harness.rails.request_count(), 0);
            Some(line["error"].as_str().unwrap().to_owned())
        }
        _ => panic!("{response}"),
    }
}

#[tokio::test]
async fn a_ca_certificate_is_accepted_from_its_own_server_if_pinned() {
    let shown = Identity::self_signed(&ca_params(&["localhost"]));
    let other = Identity::self_signed(&ca_params(&["localhost"]));
    assert_eq!(request_error("pinned-0", &shown, &[&shown.certificate]).await, None);
    assert_eq!(request_error("pinned-1", &shown, &[&other.certificate, &shown.certificate]).await, None);
    // Also if another CA has signed it.
    let root = CertifiedIssuer::self_signed(ca_params(&[]), KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = ca_params(&["localhost"]).signed_by(&key, &root).unwrap().der().clone();
    let below = Identity { certificate, key };
    assert_eq!(request_error("pinned-2", &below, &[&below.certificate]).await, None);
    // The same of one that is not a CA's, whose issuer is not known.
    let mut named_root = ca_params(&[]);
    named_root.distinguished_name.push(DnType::CommonName, "Authority");
    let named_root = CertifiedIssuer::self_signed(named_root, KeyPair::generate().unwrap()).unwrap();
    // `root` has the same name as the others here, which did not sign it.
    for (kind, root, why) in [("known", &root, "BadSignature"), ("unknown", &named_root, "UnknownIssuer")] {
        let key = KeyPair::generate().unwrap();
        let mut leaf = ca_params(&["localhost"]);
        leaf.is_ca = IsCa::ExplicitNoCa;
        let leaf = Identity { certificate: leaf.signed_by(&key, root).unwrap().der().clone(), key };
        let other = &other.certificate;
        for (nth, named) in
            [vec![&leaf.certificate], vec![other, &leaf.certificate], vec![root.der()]].iter().enumerate()
        {
            assert_eq!(request_error(&format!("pinned-leaf-{kind}-{nth}"), &leaf, named).await, None);
        }
        let error = request_error(&format!("not-pinned-leaf-{kind}"), &leaf, &[other]).await;
        let error = error.expect("it is not named");
        assert!(error.contains(why), "{error}");
    }
    // A certificate that is not a CA's needs no special rule.
    let mut plain = ca_params(&["localhost"]);
    plain.is_ca = IsCa::ExplicitNoCa;
    let plain = Identity::self_signed(&plain);
    assert_eq!(request_error("pinned-3", &plain, &[&plain.certificate]).await, None);

    // Only the certificate itself, not a similar one.
    let again = ca_params(&["localhost"]).self_signed(&shown.key).unwrap().der().clone();
    for (nth, named) in [&other.certificate, &again, root.der()].into_iter().enumerate() {
        let error =
            request_error(&format!("not-pinned-{nth}"), &shown, &[named]).await.expect("it is not named");
        assert!(error.contains("name that very certificate as upstream.tls.ca_file"), "{error}");
    }
    // Nor a CA certificate that a pinned authority has signed.
    let error = request_error("not-pinned-3", &below, &[root.der()]).await.expect("it is not named");
    assert!(error.contains("or give the server one with CA:FALSE"), "{error}");
}

/// As older instructions make certificates.
#[tokio::test]
async fn the_common_name_counts_without_alternative_names() {
    let with = |common: &str, names: &[&str], is_ca: IsCa| {
        let mut params = ca_params(names);
        params.distinguished_name.push(DnType::OrganizationName, "GitLab");
        params.distinguished_name.push(DnType::CommonName, common);
        params.is_ca = is_ca;
        Identity::self_signed(&params)
    };
    let authority = IsCa::Ca(BasicConstraints::Unconstrained);
    for (nth, (shown, is_good)) in [
        (with("localhost", &[], authority), true),
        (with("LocalHost", &[], authority), true),
        (with("localhost", &[], IsCa::ExplicitNoCa), true),
        (with("localhost.example", &[], authority), false),
        (with("localhos", &[], IsCa::ExplicitNoCa), false),
        (with("localhost", &["gitlab.example.com"], authority), false),
        (with("localhost", &["127.0.0.1"], IsCa::ExplicitNoCa), false),
        (with("*", &[], IsCa::ExplicitNoCa), false),
        (with("*.localhost", &[], IsCa::ExplicitNoCa), false),
    ]
    .into_iter()
    .enumerate()
    {
        let error = request_error(&format!("common-name-{nth}"), &shown, &[&shown.certificate]).await;
        assert_eq!(error.is_none(), is_good, "{nth}: {error:?}");
    }
    // Only for pinned certificates.
    let root = CertifiedIssuer::self_signed(ca_params(&[]), KeyPair::generate().unwrap()).unwrap();
    let mut below = CertificateParams::new(Vec::new()).unwrap();
    below.distinguished_name.push(DnType::CommonName, "localhost");
    let key = KeyPair::generate().unwrap();
    let certificate = below.signed_by(&key, &root).unwrap().der().clone();
    let error = request_error("common-name-of-another", &Identity { certificate, key }, &[root.der()]).await;
    assert!(error.unwrap().contains("not valid for name"));
}

/// As curl has it (seen: 7.88.1).
#[tokio::test]
async fn a_wildcard_in_the_common_name_is_one_label() {
    for (nth, (common, server_name, is_good)) in [
        ("*.example.com", "rails.example.com", true),
        ("*.EXAMPLE.com", "rails.example.COM", true),
        ("*.b.example.com", "a.b.example.com", true),
        ("*.example.com", "a.b.example.com", false),
        ("*.example.com", "example.com", false),
        ("*.com", "example.com", false),
        ("r*.example.com", "rails.example.com", false),
        ("*.0.0.1", "127.0.0.1", false),
        ("127.0.0.1", "127.0.0.1", true),
    ]
    .into_iter()
    .enumerate()
    {
        let mut params = ca_params(&[]);
        params.distinguished_name.push(DnType::CommonName, common);
        let shown = Identity::self_signed(&params);
        let setup = Setup::new().over_tls();
        let named = write_ca_file(&setup, &[&shown.certificate]);
        let harness = setup
            .text("upstream.tls.ca_file", &named.display().to_string())
            .text("upstream.tls.server_name", server_name)
            .start_with(FakeRails::listen_tls(shown.tls_acceptor()).await);
        let response = harness.send(&Request::post("allowed").with_secret()).await;
        assert_eq!(response.status == 200, is_good, "{nth}: {common} {server_name}: {response}");
    }
}

/// OpenSSL refuses those of another purpose, too, and so does curl.
#[tokio::test]
async fn a_pinned_certificate_must_be_for_a_server() {
    use ExtendedKeyUsagePurpose::{Any, ClientAuth, ServerAuth};
    use KeyUsagePurpose::{ContentCommitment, CrlSign, DigitalSignature, KeyAgreement, KeyCertSign};
    let root = CertifiedIssuer::self_signed(ca_params(&[]), KeyPair::generate().unwrap()).unwrap();
    for (nth, (usages, purposes, is_good)) in [
        (vec![DigitalSignature], vec![], true),
        (vec![KeyCertSign, CrlSign, DigitalSignature], vec![ClientAuth, ServerAuth], true),
        (vec![KeyAgreement], vec![ServerAuth], true),
        (vec![KeyCertSign, CrlSign], vec![], false),
        (vec![ContentCommitment], vec![], false),
        (vec![], vec![ClientAuth], false),
        (vec![], vec![Any], false),
        (vec![DigitalSignature], vec![ClientAuth], false),
        (vec![KeyCertSign], vec![ServerAuth], false),
    ]
    .into_iter()
    .enumerate()
    {
        for is_ca in [IsCa::Ca(BasicConstraints::Unconstrained), IsCa::ExplicitNoCa] {
            let mut params = ca_params(&["localhost"]);
            (params.is_ca, params.key_usages) = (is_ca, usages.clone());
            params.extended_key_usages.clone_from(&purposes);
            let key = KeyPair::generate().unwrap();
            let shown = Identity { certificate: params.signed_by(&key, &root).unwrap().der().clone(), key };
            let id = format!("purpose-{nth}-{}", params.is_ca == IsCa::ExplicitNoCa);
            let error = request_error(&id, &shown, &[&shown.certificate]).await;
            assert_eq!(error.is_none(), is_good, "{usages:?} {purposes:?}: {error:?}");
        }
    }
}

/// `openssl x509 -req -signkey` makes one if it gets no extensions, in OpenSSL before 3.
#[tokio::test]
async fn a_certificate_of_version_1_is_explained() {
    let shown = Identity::of_version_1();
    let error = request_error_of("version-1", shown.unchecked_tls_acceptor(), &[&shown.certificate]).await;
    let error = error.expect("it cannot be used");
    assert!(error.contains("of X.509 version 1") && error.contains("openssl req -x509"), "{error}");
}

#[tokio::test]
async fn a_pinned_certificate_must_match_name_and_dates() {
    let root = CertifiedIssuer::self_signed(ca_params(&[]), KeyPair::generate().unwrap()).unwrap();
    let mut expired = ca_params(&["localhost"]);
    (expired.not_before, expired.not_after) = (date_time_ymd(2000, 1, 1), date_time_ymd(2001, 1, 1));
    let mut not_yet = ca_params(&["localhost"]);
    (not_yet.not_before, not_yet.not_after) = (date_time_ymd(2100, 1, 1), date_time_ymd(2101, 1, 1));
    for (nth, (params, why)) in [
        (expired, "expired"),
        (not_yet, "not valid yet"),
        (ca_params(&["gitlab.example.com"]), "not valid for name \"localhost\""),
        (ca_params(&[]), "not valid for name \"localhost\""),
    ]
    .into_iter()
    .enumerate()
    {
        let shown = Identity::self_signed(&params);
        // The same of one that is not a CA's, whose issuer is not known.
        let (key, mut leaf) = (KeyPair::generate().unwrap(), params);
        leaf.is_ca = IsCa::ExplicitNoCa;
        let leaf = Identity { certificate: leaf.signed_by(&key, &root).unwrap().der().clone(), key };
        for (kind, shown) in [("ca", shown), ("leaf", leaf)] {
            let error =
                request_error(&format!("pinned-but-{kind}-{nth}"), &shown, &[&shown.certificate]).await;
            let error = error.expect(why);
            assert!(error.contains(why), "{error}");
        }
    }
}

/// A certificate is public: the server has to prove that it has the key.
#[tokio::test]
async fn a_pinned_certificate_requires_its_private_key() {
    let shown = Identity::self_signed(&ca_params(&["localhost"]));
    let thief = Identity { certificate: shown.certificate.clone(), key: KeyPair::generate().unwrap() };
    let setup = Setup::new().over_tls();
    let named = write_ca_file(&setup, &[&shown.certificate]);
    let harness = setup
        .text("upstream.tls.ca_file", &named.display().to_string())
        .start_with(FakeRails::listen_tls(thief.unchecked_tls_acceptor()).await);
    let id = "pinned-without-key";
    harness
        .send(&Request::post("allowed").with_secret().header("X-Request-Id", id))
        .await
        .assert_failure(502);
    let error = log::wait_for_request_line(id).await["error"].as_str().unwrap().to_owned();
    assert!(error.contains("BadSignature"), "{error}");
    assert_eq!(harness.rails.request_count(), 0);
}

//! Series of the configuration and of the secrets.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::metrics::encode::encode_single;
use crate::reload::ReloadStatus;
use crate::secret::status::SecretStatus;

pub(super) fn encode(
    reload: &ReloadStatus,
    secrets: &[SecretStatus],
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let succeeded = ConstGauge::new(i64::from(!reload.has_failed()));
    let help = "Whether the configuration file had no mistakes when it was last read";
    encode_single(encoder, "config_last_reload_successful", help, &succeeded)?;
    let at = ConstGauge::new(reload.succeeded_at());
    let help = "When the configuration that is in effect was read, since the Unix epoch";
    encode_single(encoder, "config_last_reload_success_timestamp_seconds", help, &at)?;
    let help = "The first digits of a hash of each secret that is in use, to compare gateways";
    let mut family = encoder.encode_descriptor("secret_fingerprint", help, None, MetricType::Gauge)?;
    for secret in secrets {
        if let Some(fingerprint) = &secret.fingerprint {
            let labels = [("secret", secret.role.as_str()), ("fingerprint", fingerprint.as_str())];
            ConstGauge::new(1).encode(family.encode_family(&labels)?)?;
        }
    }
    let written = (
        "secret_file_modified_timestamp_seconds",
        "When the secret's file was written, since the Unix epoch",
    );
    encode_each(secrets, encoder, written, |secret| ConstGauge::new(secret.modified))?;
    let usable = ("secret_file_usable", "Whether the file holds a secret; if not, the one before is in use");
    encode_each(secrets, encoder, usable, |secret| ConstGauge::new(i64::from(secret.is_usable)))?;
    let replaced = ("secret_replacements", "How often a secret was replaced while the gateway ran");
    encode_each(secrets, encoder, replaced, |secret| ConstCounter::new(secret.replaced))
}

fn encode_each<M: EncodeMetric>(
    secrets: &[SecretStatus],
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    of: impl Fn(&SecretStatus) -> M,
) -> fmt::Result {
    let Some(kind) = secrets.first().map(|secret| of(secret).metric_type()) else { return Ok(()) };
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for secret in secrets {
        of(secret).encode(family.encode_family(&[("secret", secret.role.as_str())])?)?;
    }
    Ok(())
}

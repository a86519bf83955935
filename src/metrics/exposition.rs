//! The two exposition formats of metrics, and how a scraper and the gateway agree on one.

use std::fmt::Write as _;

/// How series are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpositionFormat {
    /// That of Prometheus, version 0.0.4, which every tool reads.
    Text,
    /// `OpenMetrics` 1.0.0.
    OpenMetrics,
}

impl ExpositionFormat {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Text, Self::OpenMetrics];

    /// What the values of `Accept` ask for (RFC 9110 §12.5.1): `OpenMetrics` if it is named and the other one has
    /// no higher weight. Of two with the same weight it is the first. A client that asks for neither, as with
    /// `*/*`, gets the classic one: none is refused.
    pub fn negotiate<'a>(values: impl Iterator<Item = &'a str>) -> Self {
        let ranges = values.flat_map(|value| value.split(',')).filter_map(MediaRange::parse);
        let mut wanted: Option<(f32, Self)> = None;
        let (mut is_text_named, mut by_wildcard) = (false, 0.0_f32);
        for MediaRange { format, weight } in ranges {
            let Some(format) = format else {
                by_wildcard = by_wildcard.max(weight);
                continue;
            };
            is_text_named |= format == Self::Text;
            if weight > wanted.map_or(0.0, |(weight, _)| weight) {
                wanted = Some((weight, format));
            }
        }
        match wanted {
            // A wildcard stands for what is not named itself.
            Some((weight, format)) if is_text_named || by_wildcard <= weight => format,
            _ => Self::Text,
        }
    }

    /// The value of `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// Converts what the library has written.
    pub(super) fn convert(self, open_metrics: String) -> String {
        match self {
            Self::OpenMetrics => open_metrics,
            Self::Text => to_prometheus_text(&open_metrics),
        }
    }
}

/// One of the media ranges in `Accept`, if it includes a format that there is.
struct MediaRange {
    /// `None` for a wildcard.
    format: Option<ExpositionFormat>,
    /// `q`, 0 to 1.
    weight: f32,
}

impl MediaRange {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let media_type = parts.next()?.to_ascii_lowercase();
        let (mut weight, mut version) = (1.0, None);
        for part in parts {
            let (name, value) = part.split_once('=')?;
            match name.trim().to_ascii_lowercase().as_str() {
                "q" => weight = value.trim().parse().ok().filter(|weight| (0.0..=1.0).contains(weight))?,
                "version" => version = Some(value.trim().trim_matches('"')),
                _ => {}
            }
        }
        let format = match media_type.as_str() {
            "application/openmetrics-text" if version.is_none_or(|version| version == "1.0.0") => {
                Some(ExpositionFormat::OpenMetrics)
            }
            "text/plain" => Some(ExpositionFormat::Text),
            "*/*" | "text/*" => None,
            _ => return None,
        };
        Some(Self { format, weight })
    }
}

/// Converts `OpenMetrics` to the classic format: there a counter has its suffix in `HELP` and `TYPE` too,
/// an info is a gauge, and there are neither units nor an end.
fn to_prometheus_text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len() + open_metrics.len() / 16);
    let mut help = "";
    for line in open_metrics.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            text.push_str(line);
            text.push('\n');
            continue;
        };
        match comment.split_once(' ') {
            // The type, which comes behind it, decides the name.
            Some(("HELP", help_line)) => help = help_line,
            Some(("TYPE", type_line)) => {
                let (name, kind) = type_line.split_once(' ').unwrap_or((type_line, "unknown"));
                let (suffix, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    kind => ("", kind),
                };
                // Writing to a String cannot fail.
                let _ = match help.strip_prefix(name).and_then(|help| help.strip_prefix(' ')) {
                    Some(help) => writeln!(text, "# HELP {name}{suffix} {help}"),
                    None => Ok(()),
                };
                let _ = writeln!(text, "# TYPE {name}{suffix} {kind}");
            }
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::ExpositionFormat::{OpenMetrics, Text};
    use super::*;

    #[test]
    fn openmetrics_is_served_only_to_clients_that_ask_for_it() {
        for (accept, expected) in [
            ("", Text),
            ("*/*", Text),
            ("text/plain", Text),
            ("text/plain; version=0.0.4", Text),
            ("text/*", Text),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Text),
            ("application/json", Text),
            ("application/*", Text),
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
                Text,
            ),
            ("application/openmetrics-text", OpenMetrics),
            ("Application/OpenMetrics-Text; Version=\"1.0.0\"; charset=utf-8", OpenMetrics),
            ("application/openmetrics-text;version=0.0.1", Text),
            ("application/openmetrics-text;version=2.0.0", Text),
            ("application/openmetrics-text;q=0", Text),
            ("application/openmetrics-text;q=0.000,text/plain", Text),
            ("application/openmetrics-text;q=2", Text),
            ("application/openmetrics-text;q=x", Text),
            ("application/openmetrics-text;q=0.1,text/plain;q=0.2", Text),
            ("text/plain;q=0.1, application/openmetrics-text;q=0.2", OpenMetrics),
            ("text/plain, application/openmetrics-text", Text),
            ("application/openmetrics-text, text/plain", OpenMetrics),
            ("application/openmetrics-text;q=0.5, */*", Text),
            ("application/openmetrics-text;q=0.5, text/plain;q=0.1, */*", OpenMetrics),
            ("application/openmetrics-text, */*;q=0.1", OpenMetrics),
            // Prometheus 2.43 and 3.5.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                 text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                OpenMetrics,
            ),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;\
                 version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                OpenMetrics,
            ),
            (
                "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Text,
            ),
        ] {
            assert_eq!(ExpositionFormat::negotiate([accept].into_iter()), expected, "{accept}");
            assert_eq!(
                ExpositionFormat::negotiate(accept.split_inclusive(',')),
                expected,
                "{accept}, in lines"
            );
        }
    }

    #[test]
    fn the_classic_format_has_classic_names_and_types() {
        let open_metrics = "# HELP a_build What runs.\n# TYPE a_build info\na_build_info{v=\"1\"} 1\n\
            # HELP a_requests Requests, # and so on.\n# TYPE a_requests counter\na_requests_total{r=\"# x\"} 2\n\
            # HELP a_now Now.\n# TYPE a_now gauge\n# UNIT a_now seconds\na_now 3\n\
            # HELP a_h Spread.\n# TYPE a_h histogram\na_h_sum 0.5\na_h_count 1\na_h_bucket{le=\"+Inf\"} 1\n\
            # TYPE a_b unknown\na_b 1\n# EOF\n";
        let expected = "# HELP a_build_info What runs.\n# TYPE a_build_info gauge\na_build_info{v=\"1\"} 1\n\
            # HELP a_requests_total Requests, # and so on.\n# TYPE a_requests_total counter\na_requests_total{r=\"# x\"} 2\n\
            # HELP a_now Now.\n# TYPE a_now gauge\na_now 3\n\
            # HELP a_h Spread.\n# TYPE a_h histogram\na_h_sum 0.5\na_h_count 1\na_h_bucket{le=\"+Inf\"} 1\n\
            # TYPE a_b untyped\na_b 1\n";
        assert_eq!(Text.convert(open_metrics.to_owned()), expected);
        assert_eq!(OpenMetrics.convert(open_metrics.to_owned()), open_metrics);
    }
}

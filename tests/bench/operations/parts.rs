//! Parts of the work for one request.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use http::header::{HeaderMap, HeaderName, HeaderValue};
use railgate::auth::{AuthBody, AuthOutcome, CallerKind, Rejection};
use railgate::cache::Key;
use railgate::clock::Clock;
use railgate::header;
use railgate::params::Params;
use railgate::route::{Access, Caching};

use super::{PART_REPETITIONS, Repeat, WARM_UP};
use crate::credentials::{self, SHELL_HEADER};
use crate::{Fallible, operations};

/// Authenticates a request with this header.
pub(super) fn judge(
    access: Access,
    name: &'static str,
    value: &str,
    expected: Result<CallerKind, Rejection>,
) -> Fallible<Repeat> {
    let auth = operations::auth()?;
    let headers = headers(&[("host", "localhost:8080"), ("user-agent", "GitLab-Shell"), (name, value)])?;
    let now = Clock::System.unix_seconds();
    Ok(Box::new(move |times| {
        let query = Params::parse(b"key_id=7");
        for _ in 0..times {
            let verdict =
                auth.authenticate(access, black_box(&headers), &query, AuthBody::Irrelevant, || now);
            let judged = match black_box(verdict) {
                AuthOutcome::Accepted(caller) => Ok(caller.kind()),
                AuthOutcome::Rejected(rejection) => Err(rejection),
                AuthOutcome::BodyNeeded => return Err("the body was asked for".into()),
            };
            if judged != expected {
                return Err(format!("judged {judged:?} instead of {expected:?}").into());
            }
        }
        Ok(())
    }))
}

/// Computes the cache key of a query.
pub(super) fn key(caching: Caching, query: String) -> Fallible<Repeat> {
    Ok(Box::new(move |times| {
        for _ in 0..times {
            let params = Params::parse(black_box(query.as_bytes()));
            if black_box(Key::new(caching, &params)).is_none() {
                return Err(format!("there is no key for {query}").into());
            }
        }
        Ok(())
    }))
}

/// Prepares the headers of a forwarded request. Each set is used once, so all are made in advance: the same
/// number in both runs, so that the difference does not include them.
pub(super) fn prepare_for_upstream() -> Fallible<Repeat> {
    let headers = headers(&[
        ("host", "localhost:8080"),
        ("user-agent", "GitLab-Shell"),
        (SHELL_HEADER, &credentials::shared_secret()),
        ("accept-encoding", "gzip"),
        ("connection", "keep-alive"),
        ("content-type", "application/x-www-form-urlencoded"),
        ("content-length", "200"),
        ("x-forwarded-for", "203.0.113.7"),
    ])?;
    let most = usize::try_from(WARM_UP + 2 * PART_REPETITIONS)?;
    let mut unused = vec![headers; most].into_iter();
    let mut used = Vec::with_capacity(most);
    Ok(Box::new(move |times| {
        for _ in 0..times {
            let mut headers = unused.next().ok_or("no headers are left")?;
            header::prepare_for_upstream(
                black_box(&mut headers),
                Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                header::ClientScheme::Http,
            );
            used.push(headers);
        }
        Ok(())
    }))
}

fn headers(pairs: &[(&str, &str)]) -> Fallible<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_str(value)?);
    }
    Ok(headers)
}

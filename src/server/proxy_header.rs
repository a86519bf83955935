//! The PROXY protocol, versions 1 and 2: the header in which a proxy says for whom it connects
//! (<https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>).
//!
//! Read strictly: a header has one meaning, or the connection is closed. The checksum and the other TLVs of version 2
//! are skipped, as the specification allows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of the longest header of version 1, its line break included.
const MAX_V1: usize = 107;
/// Bytes of the longest header of version 2: TLVs beside the longest addresses fit, and more is refused.
const MAX_V2: usize = 536;
/// Bytes of the longest header of either version.
pub(super) const MAX_LENGTH: usize = MAX_V2;

const V1: &[u8] = b"PROXY ";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Of version 2: the signature, version and command, family, and the length of the rest.
const V2_FIXED: usize = 16;

/// A whole header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProxyHeader {
    /// Its bytes.
    pub(super) length: usize,
    /// For whom the proxy connects. `None`: for itself, as for a health check, or for a client without an address
    /// that is known.
    pub(super) client: Option<IpAddr>,
}

/// What is wrong with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProxyHeaderError {
    #[error("the connection does not begin with a PROXY header")]
    Signature,
    #[error("its PROXY header is too long")]
    TooLong,
    #[error("its PROXY header is malformed")]
    Malformed,
}

/// The header that `bytes` begin with. `None`: more of it has to be read.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyHeaderError> {
    if begins_alike(bytes, V2) {
        return if bytes.len() < V2_FIXED { Ok(None) } else { parse_v2(bytes) };
    }
    if !begins_alike(bytes, V1) {
        return Err(ProxyHeaderError::Signature);
    }
    let line_end = bytes.iter().take(MAX_V1).position(|byte| *byte == b'\n');
    match line_end {
        None if bytes.len() >= MAX_V1 => Err(ProxyHeaderError::TooLong),
        None => Ok(None),
        Some(at) => {
            let line = bytes.get(..at).and_then(|line| line.strip_suffix(b"\r"));
            let client = line.ok_or(ProxyHeaderError::Malformed).and_then(parse_v1)?;
            Ok(Some(ProxyHeader { length: at + 1, client }))
        }
    }
}

/// Whether one is the beginning of the other.
fn begins_alike(bytes: &[u8], signature: &[u8]) -> bool {
    bytes.iter().zip(signature).all(|(one, other)| one == other)
}

/// `PROXY TCP4 source destination port port`, with one space each. Returns the source.
fn parse_v1(line: &[u8]) -> Result<Option<IpAddr>, ProxyHeaderError> {
    let words = line.strip_prefix(V1).and_then(|words| std::str::from_utf8(words).ok());
    let mut words = words.ok_or(ProxyHeaderError::Malformed)?.split(' ');
    let family = words.next().unwrap_or_default();
    if family == "UNKNOWN" {
        // The rest is to be ignored.
        return Ok(None);
    }
    let mut address = || -> Option<IpAddr> {
        let word = words.next()?;
        match family {
            "TCP4" => word.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            "TCP6" => word.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let (source, destination) = (address(), address());
    let mut is_port = || {
        let word = words.next().unwrap_or_default();
        let is_plain =
            word.bytes().all(|byte| byte.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
        is_plain && word.parse::<u16>().is_ok()
    };
    let are_ports = is_port() && is_port();
    match (source, destination, words.next()) {
        (Some(source), Some(_), None) if are_ports => Ok(Some(source.to_canonical())),
        _ => Err(ProxyHeaderError::Malformed),
    }
}

fn parse_v2(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyHeaderError> {
    let [version_and_command, family, high, low] =
        array(bytes, V2.len()).ok_or(ProxyHeaderError::Malformed)?;
    let length = V2_FIXED + usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_V2 {
        return Err(ProxyHeaderError::TooLong);
    }
    // Before the rest is waited for.
    let is_local = match version_and_command {
        0x20 => true,
        0x21 => false,
        _ => return Err(ProxyHeaderError::Malformed),
    };
    let addresses = match family {
        0x00 => 0,
        // Over TCP or UDP, by IPv4, IPv6 and unix sockets.
        0x11 | 0x12 => 12,
        0x21 | 0x22 => 36,
        0x31 | 0x32 => 216,
        // A receiver must accept any family with LOCAL.
        _ if is_local => 0,
        _ => return Err(ProxyHeaderError::Malformed),
    };
    if length < V2_FIXED + addresses && !is_local {
        return Err(ProxyHeaderError::Malformed);
    }
    if bytes.len() < length {
        return Ok(None);
    }
    let malformed = ProxyHeaderError::Malformed;
    let client = match family {
        _ if is_local => None,
        // This listener speaks TCP: a client over UDP can only be a mistake.
        0x12 | 0x22 | 0x32 => return Err(malformed),
        0x11 => Some(IpAddr::from(array::<4>(bytes, V2_FIXED).ok_or(malformed)?)),
        0x21 => Some(IpAddr::from(array::<16>(bytes, V2_FIXED).ok_or(malformed)?).to_canonical()),
        _ => None,
    };
    Ok(Some(ProxyHeader { length, client }))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests;

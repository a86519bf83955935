use proptest::prelude::*;

use super::ProxyHeaderError::{Malformed, Signature, TooLong};
use super::*;

fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [V2, &[command, family], &length, rest].concat()
}

fn client(bytes: &[u8]) -> Result<Option<IpAddr>, ProxyHeaderError> {
    let behind = [bytes, b"GET / HTTP/1.1\r\n"].concat();
    let header = parse(&behind)?.expect("it is whole");
    assert_eq!(header.length, bytes.len());
    Ok(header.client)
}

fn address(text: &str) -> Option<IpAddr> {
    Some(text.parse().unwrap())
}

#[test]
fn headers_of_version_1() {
    for (line, expected) in [
        ("PROXY TCP4 203.0.113.7 192.0.2.1 56324 8181\r\n", Ok(address("203.0.113.7"))),
        ("PROXY TCP6 2001:db8::7 2001:db8::1 56324 8181\r\n", Ok(address("2001:db8::7"))),
        ("PROXY TCP6 ::ffff:203.0.113.7 ::1 1 2\r\n", Ok(address("203.0.113.7"))),
        ("PROXY UNKNOWN\r\n", Ok(None)),
        ("PROXY UNKNOWN 1 2 3 4 whatever\r\n", Ok(None)),
        ("PROXY TCP4 203.0.113.7 192.0.2.1 0 65535\r\n", Ok(address("203.0.113.7"))),
        ("PROXY TCP4 203.0.113.7 192.0.2.1 56324 8181\n", Err(Malformed)),
        ("PROXY TCP4 203.0.113.7 192.0.2.1 56324\r\n", Err(Malformed)),
        ("PROXY TCP4 203.0.113.7 192.0.2.1 56324 65536\r\n", Err(Malformed)),
        ("PROXY TCP4 203.0.113.7 192.0.2.1 056 8181\r\n", Err(Malformed)),
        ("PROXY TCP4 203.0.113.7 192.0.2.1 +56 8181\r\n", Err(Malformed)),
        ("PROXY TCP4 203.0.113.7 192.0.2.1 56324 8181 x\r\n", Err(Malformed)),
        ("PROXY TCP4 203.0.113.7  192.0.2.1 56324 8181\r\n", Err(Malformed)),
        ("PROXY TCP4 203.0.113.07 192.0.2.1 56324 8181\r\n", Err(Malformed)),
        ("PROXY TCP4 2001:db8::7 192.0.2.1 56324 8181\r\n", Err(Malformed)),
        ("PROXY TCP6 203.0.113.7 192.0.2.1 56324 8181\r\n", Err(Malformed)),
        ("PROXY UDP4 203.0.113.7 192.0.2.1 56324 8181\r\n", Err(Malformed)),
        ("PROXY \r\n", Err(Malformed)),
        ("PROXY\tTCP4 203.0.113.7 192.0.2.1 1 2\r\n", Err(Signature)),
        ("proxy TCP4 203.0.113.7 192.0.2.1 1 2\r\n", Err(Signature)),
        ("GET / HTTP/1.1\r\n", Err(Signature)),
        ("\r\nGET / HTTP/1.1\r\n", Err(Signature)),
    ] {
        assert_eq!(client(line.as_bytes()), expected, "{line:?}");
    }
}

#[test]
fn headers_of_version_2() {
    let (v4, v6) = ([203, 0, 113, 7, 192, 0, 2, 1, 1, 1, 2, 2], [[0x20; 16], [1; 16]].concat());
    let v6 = [&v6[..], &[1, 1, 2, 2]].concat();
    let with_tlv = [&v4[..], &[0x03, 0, 4, 1, 2, 3, 4]].concat();
    for (what, bytes, expected) in [
        ("IPv4", v2(0x21, 0x11, &v4), Ok(address("203.0.113.7"))),
        ("IPv4 and a checksum", v2(0x21, 0x11, &with_tlv), Ok(address("203.0.113.7"))),
        ("IPv6", v2(0x21, 0x21, &v6), Ok(Some(IpAddr::from([0x20; 16])))),
        ("a unix socket", v2(0x21, 0x31, &[0; 216]), Ok(None)),
        ("no family", v2(0x21, 0x00, &[]), Ok(None)),
        ("no family and TLVs", v2(0x21, 0x00, &[4, 0, 1, 0]), Ok(None)),
        ("LOCAL", v2(0x20, 0x00, &[]), Ok(None)),
        ("LOCAL with an address", v2(0x20, 0x11, &v4), Ok(None)),
        ("LOCAL of any family", v2(0x20, 0x77, &[1]), Ok(None)),
        ("the longest", v2(0x21, 0x11, &[1; MAX_V2 - V2_FIXED]), Ok(address("1.1.1.1"))),
        ("too long", v2(0x21, 0x11, &[1; MAX_V2 - V2_FIXED + 1]), Err(TooLong)),
        ("too short for IPv4", v2(0x21, 0x11, &v4[..11]), Err(Malformed)),
        ("too short for IPv6", v2(0x21, 0x21, &v6[..35]), Err(Malformed)),
        ("too short for a unix socket", v2(0x21, 0x31, &[0; 215]), Err(Malformed)),
        ("UDP", v2(0x21, 0x12, &v4), Err(Malformed)),
        ("another family", v2(0x21, 0x41, &v4), Err(Malformed)),
        ("another transport", v2(0x21, 0x13, &v4), Err(Malformed)),
        ("another command", v2(0x22, 0x11, &v4), Err(Malformed)),
        ("version 1", v2(0x11, 0x11, &v4), Err(Malformed)),
        ("version 3", v2(0x31, 0x11, &v4), Err(Malformed)),
    ] {
        assert_eq!(client(&bytes), expected, "{what}");
    }
}

#[test]
fn a_header_without_an_end_is_refused_at_its_bound() {
    let endless = [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 200]].concat();
    assert_eq!(parse(&endless[..MAX_V1 - 1]), Ok(None));
    assert_eq!(parse(&endless[..MAX_V1]), Err(TooLong));
    assert_eq!(parse(&endless), Err(TooLong));
    let exact = [endless[..MAX_V1 - 2].to_vec(), b"\r\n".to_vec()].concat();
    assert_eq!(client(&exact), Ok(None));
}

proptest! {
    /// A verdict on a part of the input is that on all of it, and no more is read than the bound.
    #[test]
    fn the_verdict_does_not_depend_on_how_bytes_arrive(
        bytes in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..700),
            proptest::collection::vec(any::<u8>(), 0..700).prop_map(|rest| [V2, &rest].concat()),
            "PROXY (TCP4|TCP6|UNKNOWN|X) [0-9a-f.: ]{0,90}\r?\n?".prop_map(String::into_bytes),
            (0x1f_u8..0x23, any::<u8>(), proptest::collection::vec(any::<u8>(), 0..600))
                .prop_map(|(command, family, rest)| v2(command, family, &rest)),
        ],
    ) {
        let whole = parse(&bytes);
        for end in 0..=bytes.len() {
            let part = parse(&bytes[..end]);
            if part != Ok(None) {
                prop_assert_eq!(part, whole);
            }
        }
        if let Ok(Some(header)) = whole {
            prop_assert!(header.length <= MAX_V2.min(bytes.len()));
        }
        if bytes.len() >= MAX_V2 {
            prop_assert_ne!(whole, Ok(None));
        }
    }
}

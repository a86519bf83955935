//! The `ETag` and the body of an answer, in less memory.
//!
//! Most of a key row is the same in every row: the names of its fields, and how each key of one type begins. So
//! these texts are kept once, and an entry has only their numbers and what lies between. What GitLab writes in
//! another way is kept as it is.
//!
//! ```text
//! segment …         1 byte: the number of a text in `TEXTS`, or `ETAG` or `RACK_ETAG`
//!                   1 byte: how many bytes follow
//!                   these bytes
//! ```

/// What GitLab's answers have in common, for releases whose rows have their fields in different orders (contract
/// §3.1). Of those that begin alike, the first is taken. Nothing outside of this process depends on the numbers.
const TEXTS: &[&str] = &[
    // Where none of the others begins.
    "",
    r#"{"id":"#,
    r#","title":""#,
    r#"","created_at":"20"#,
    r#"","expires_at":null,"usage_type":"auth_and_signing"}"#,
    r#"","expires_at":null,"#,
    r#"","expires_at":"20"#,
    r#"","usage_type":"auth_and_signing"}"#,
    // With how a blob of the type begins: with its name, and with the lengths of what follows. RSA has 2048, 3072 or
    // 4096 bits, and the usual exponent.
    r#""key":"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI"#,
    r#""key":"ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQ"#,
    r#""key":"ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQ"#,
    r#""key":"ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAACAQ"#,
    r#""key":"ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBB"#,
    r#""key":"sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAI"#,
    // Users.
    r#","username":""#,
    r#"","username":""#,
    r#","name":""#,
    r#"","name":""#,
    r#"","state":"active""#,
    // An unknown key.
    r#"{"message":"404 Key Not Found"}"#,
];

/// The number of a part of the `ETag`.
const ETAG: u8 = u8::MAX - 1;

/// The number of an `ETag` as `Rack::ETag` writes it: `W/"…"` with a digest in lower-case hexadecimal digits. It is
/// stored in binary.
const RACK_ETAG: u8 = u8::MAX;

type RackDigest = [u8; 16];

/// The `ETag` and the body of an answer.
#[derive(Debug)]
pub(super) struct CompactText(Box<[u8]>);

impl CompactText {
    pub(super) fn new(etag: Option<&[u8]>, body: &[u8]) -> Self {
        let etag = etag.unwrap_or_default();
        let mut compact = Vec::with_capacity(etag.len() + body.len());
        match rack_digest(etag) {
            Some(digest) => push_segment(&mut compact, RACK_ETAG, &digest),
            None => etag.chunks(u8::MAX.into()).for_each(|part| push_segment(&mut compact, ETAG, part)),
        }
        push_text(&mut compact, body);
        // A copy: mimalloc shrinks nothing of which half is used.
        Self(compact.as_slice().into())
    }

    /// Bytes of memory.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Bytes for `ETag` and body, if they are of a row with an Ed25519 or RSA key. Others may take more.
    pub(super) fn usual_len(&self) -> usize {
        self.0.len() + USUALLY_LEFT_OUT
    }

    /// Appends the `ETag`, whose length is returned, and the body.
    pub(super) fn expand_into(&self, buffer: &mut Vec<u8>) -> usize {
        let (begin, mut etag_length) = (buffer.len(), 0);
        let mut rest = &*self.0;
        while let [number, length, behind @ ..] = rest {
            let Some((bytes, next)) = behind.split_at_checked((*length).into()) else { break };
            if let Some(text) = TEXTS.get(usize::from(*number)) {
                buffer.extend_from_slice(text.as_bytes());
                buffer.extend_from_slice(bytes);
            } else {
                match bytes.try_into() {
                    Ok(digest) if *number == RACK_ETAG => push_rack_etag(buffer, digest),
                    _ => buffer.extend_from_slice(bytes),
                }
                etag_length = buffer.len() - begin;
            }
            rest = next;
        }
        etag_length
    }
}

/// To count them would be another pass.
const USUALLY_LEFT_OUT: usize = 192;

/// `bytes` are up to 255, since their number has one byte.
fn push_segment(compact: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    compact.push(number);
    compact.push(u8::try_from(bytes.len()).unwrap_or_default());
    compact.extend_from_slice(bytes);
}

fn push_text(compact: &mut Vec<u8>, mut text: &[u8]) {
    while !text.is_empty() {
        let (number, behind) = match known_text(text) {
            Some((number, known)) => (number, text.get(known.len()..).unwrap_or_default()),
            None => (0, text),
        };
        let (unknown, rest) = behind.split_at(unknown_length(behind));
        push_segment(compact, number, unknown);
        text = rest;
    }
}

/// The text of the table that `text` begins with.
fn known_text(text: &[u8]) -> Option<(u8, &'static str)> {
    for (number, known) in (0..).zip(TEXTS).skip(1) {
        if known.as_bytes().first() == text.first() && text.starts_with(known.as_bytes()) {
            return Some((number, known));
        }
    }
    None
}

/// How many bytes a segment has from here on: up to the next text of the table, and no more than fit. Behind other
/// bytes, only those texts are looked for that begin like a field.
fn unknown_length(text: &[u8]) -> usize {
    if known_text(text).is_some() {
        return 0;
    }
    let begins_known = |index: &usize| text.get(*index..).is_some_and(|text| known_text(text).is_some());
    let most = text.len().min(u8::MAX.into());
    let (segment, _) = text.split_at(most);
    memchr::memchr2_iter(b'"', b',', segment).find(begins_known).unwrap_or(most)
}

/// The digest in an `ETag` as `Rack::ETag` writes it.
fn rack_digest(etag: &[u8]) -> Option<RackDigest> {
    let digits = etag.strip_prefix(b"W/\"")?.strip_suffix(b"\"")?;
    let (pairs, []) = digits.as_chunks() else { return None };
    let mut digest = RackDigest::default();
    if pairs.len() != digest.len() {
        return None;
    }
    for (byte, [high, low]) in digest.iter_mut().zip(pairs) {
        *byte = hex_value(*high)? << 4 | hex_value(*low)?;
    }
    Some(digest)
}

fn push_rack_etag(buffer: &mut Vec<u8>, digest: RackDigest) {
    let mut digits = [[0; 2]; size_of::<RackDigest>()];
    for (pair, byte) in digits.iter_mut().zip(&digest) {
        *pair = [hex_digit(byte >> 4), hex_digit(byte & 15)];
    }
    buffer.extend_from_slice(b"W/\"");
    buffer.extend_from_slice(digits.as_flattened());
    buffer.push(b'"');
}

fn hex_digit(value: u8) -> u8 {
    if value < 10 { b'0' + value } else { b'a' + value - 10 }
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ETAG: &str = r#"W/"0123456789abcdef0123456789abcdef""#;

    fn compact(etag: &str, body: &str) -> CompactText {
        CompactText::new(Some(etag.as_bytes()).filter(|etag| !etag.is_empty()), body.as_bytes())
    }

    fn expand(compact: &CompactText) -> (Vec<u8>, Vec<u8>) {
        let mut etag = Vec::new();
        let length = compact.expand_into(&mut etag);
        let body = etag.split_off(length);
        (etag, body)
    }

    /// A row for a blob that begins like this and has so many characters.
    fn row(order: &str, kind: &str, blob: &str, length: usize) -> String {
        let blob = format!("{blob:A<length$}");
        order.split(' ').fold(String::from("{"), |row, field| {
            let value = match field {
                "id" => "1234567".to_owned(),
                "title" => r#""laptop, \"new\"""#.to_owned(),
                "key" => format!(r#""{kind} {blob} Dede Eichmann (gitlab.example.com)""#),
                "expires_at" => "null".to_owned(),
                "usage_type" => r#""auth_and_signing""#.to_owned(),
                _ => r#""2019-06-27T15:29:02.219Z""#.to_owned(),
            };
            let separator = if row.len() > 1 { "," } else { "" };
            format!(r#"{row}{separator}"{field}":{value}"#)
        }) + "}"
    }

    /// GitLab 13.4, releases after it, and those of today.
    const ORDERS: [&str; 3] = [
        "id title key created_at",
        "id title key created_at expires_at usage_type",
        "id title created_at expires_at key usage_type",
    ];

    const KINDS: [(&str, &str, usize); 6] = [
        ("ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAI", 68),
        ("ssh-rsa", "AAAAB3NzaC1yc2EAAAADAQABAAABAQ", 372),
        ("ssh-rsa", "AAAAB3NzaC1yc2EAAAADAQABAAABgQ", 544),
        ("ssh-rsa", "AAAAB3NzaC1yc2EAAAADAQABAAACAQ", 716),
        ("ecdsa-sha2-nistp256", "AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBB", 140),
        ("sk-ssh-ed25519@openssh.com", "AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAI", 100),
    ];

    #[test]
    fn rows_of_all_releases_become_smaller_by_what_they_have_in_common() {
        for order in ORDERS {
            for (kind, blob, length) in KINDS {
                let row = row(order, kind, blob, length);
                let compact = compact(ETAG, &row);
                assert_eq!(expand(&compact), (ETAG.into(), row.clone().into()));
                // What is a row's own, the digest, and 2 bytes for each segment.
                let own =
                    r#"1234567laptop, \"new\" Dede Eichmann (gitlab.example.com)19-06-27T15:29:02.219Z"#;
                let own = own.len() + length - blob.len() + 16;
                let most = own + 2 + 2 * (10 + length / 255);
                assert!(compact.len() <= most, "{} of {most}: {row}", compact.len());
            }
        }
    }

    #[test]
    fn negative_answers_and_users_become_smaller() {
        for (body, most) in [
            (r#"{"message":"404 Key Not Found"}"#, 4),
            (r#"{"id":7,"username":"rubi","name":"Dede Eichmann"}"#, 36),
            (r#"{"id":7,"name":"Dede Eichmann","username":"rubi","state":"active"}"#, 36),
            ("null", 8),
        ] {
            let compact = compact("", body);
            assert_eq!(expand(&compact), (vec![], body.into()));
            assert!(compact.len() <= most, "{body}: {}", compact.len());
        }
    }

    #[test]
    fn any_etag_is_kept_as_it_is() {
        let long = format!(r#"W/"{}""#, "ab".repeat(17));
        let longest = "x".repeat(70_000);
        for etag in
            ["", ETAG, "\"1\"", "W/\"\"", "W/\"1\"", "W/\"AB\"", "W/\"ab", "W/", "W/\"ag\"", &long, &longest]
        {
            assert_eq!(expand(&compact(etag, "body")), (etag.into(), b"body".to_vec()), "{etag}");
        }
    }

    #[test]
    fn each_known_text_is_found() {
        for (number, known) in (0..).zip(TEXTS).skip(1) {
            let found = known_text(known.as_bytes());
            assert_eq!(found, Some((number, *known)), "an earlier one begins alike");
        }
    }

    proptest! {
        #[test]
        fn what_is_expanded_is_what_was_stored(
            etag in proptest::option::of(proptest::collection::vec(any::<u8>(), 1..80)),
            parts in proptest::collection::vec(
                (0..TEXTS.len(), proptest::collection::vec(any::<u8>(), 0..600)),
                0..8,
            ),
        ) {
            let part = |(number, own): &(usize, Vec<u8>)| [TEXTS[*number].as_bytes(), own].concat();
            let body: Vec<u8> = parts.iter().flat_map(part).collect();
            let compact = CompactText::new(etag.as_deref(), &body);
            prop_assert_eq!(expand(&compact), (etag.unwrap_or_default(), body));
        }

        #[test]
        fn parts_of_known_texts_are_stored_too(parts in proptest::collection::vec((0..TEXTS.len(), 0..80_usize), 0..20)) {
            let part = |(number, length): &(usize, usize)| {
                let text = TEXTS[*number].as_bytes();
                text[..(*length).min(text.len())].to_vec()
            };
            let body: Vec<u8> = parts.iter().flat_map(part).collect();
            prop_assert_eq!(expand(&CompactText::new(None, &body)).1, body);
        }
    }
}

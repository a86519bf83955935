//! The closed list of reasons to refuse a request before it is interpreted.
//!
//! One rule is behind every row: the gateway and Rails must not be able to understand one
//! request differently. Where they could, the request is refused and its connection closed.

use http::StatusCode;

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident, $label:literal, $status:ident, $text:literal;)+) => {
        /// Why a request was refused as malformed, ambiguous or out of bounds.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Refusal { $($(#[$doc])* $name,)+ }

        impl Refusal {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The label in metrics and logs.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }

            /// The status of the response.
            pub const fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)+ }
            }

            /// The `message` of the response.
            pub const fn message(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

refusals! {
    /// RFC 9112 §2.2 lets a recipient accept a lone LF; two recipients then disagree on framing.
    BareLineFeed, "bare_line_feed", BAD_REQUEST, "a line of the request head does not end in CRLF";
    /// RFC 9112 §3.
    RequestLine, "request_line", BAD_REQUEST, "the request line is not `METHOD /path HTTP/1.1`";
    /// RFC 9112 §3.2: neither a path nor `http://` with the host of `Host`; if they differed, readers could pick either.
    NotOriginForm, "not_origin_form", BAD_REQUEST, "the request target is neither in origin-form nor an http URL of the Host";
    /// RFC 3986 §3: a byte that no URI may hold, or a fragment, which is never sent. In a query, `{`, `|`, `}`, `^`,
    /// `\`, a backtick and UTF-8 are let through.
    Target, "target", BAD_REQUEST, "the request target holds a byte that a URI must not hold";
    /// RFC 9112 §5: no token before the colon, white space before it, or a control character.
    HeaderLine, "header_line", BAD_REQUEST, "a header line is malformed";
    /// RFC 9112 §5.2.
    FoldedHeader, "folded_header", BAD_REQUEST, "a header line is folded";
    /// RFC 9112 §6.3.
    ContentLength, "content_length", BAD_REQUEST, "Content-Length is repeated or not a number";
    /// RFC 9112 §6.1.
    TransferEncoding, "transfer_encoding", BAD_REQUEST, "Transfer-Encoding is not `chunked` alone";
    /// RFC 9112 §6.1: the classic smuggling pair.
    TwoFramings, "two_framings", BAD_REQUEST, "Content-Length and Transfer-Encoding exclude each other";
    /// RFC 9112 §7.1.
    Chunk, "chunk", BAD_REQUEST, "the chunked body is malformed";
    /// RFC 9112 §3.2; a request of HTTP/1.0 needs none.
    Host, "host", BAD_REQUEST, "the request needs exactly one valid Host header";
    /// A header that Rack would join into one value, so that each side could pick its own.
    RepeatedHeader, "repeated_header", BAD_REQUEST, "a header that may occur once is repeated";
    /// `.` and `..`, plain or encoded.
    DotSegment, "dot_segment", BAD_REQUEST, "the path has a dot segment";
    /// `//`, except in front of the path, where slashes are merged.
    EmptySegment, "empty_segment", BAD_REQUEST, "the path has an empty segment";
    /// `%2f`, `%41` and the like: the path in disguise.
    EncodedPath, "encoded_path", BAD_REQUEST, "the path has an encoded character that needs no encoding";
    /// `;` begins parameters for some servers and is a letter to others.
    PathParameter, "path_parameter", BAD_REQUEST, "the path has a `;`";
    /// CONNECT, TRACE and the HTTP/2 preface, and any method that is not 1 to 20 capital letters.
    Method, "method", BAD_REQUEST, "the method is not served here";
    /// A path over 7 KiB, a target over `limits.target`, or a query over that less 1 KiB.
    TargetTooLong, "target_too_long", URI_TOO_LONG, "the request target is too long";
    /// More bytes than `limits.head`.
    HeadTooLarge, "head_too_large", REQUEST_HEADER_FIELDS_TOO_LARGE, "the request head is too large";
    /// More lines than `limits.headers`.
    TooManyHeaders, "too_many_headers", REQUEST_HEADER_FIELDS_TOO_LARGE, "the request has too many headers";
    /// The head took longer than `limits.head_timeout`.
    HeadTimeout, "head_timeout", REQUEST_TIMEOUT, "the request head took too long to arrive";
}

impl Refusal {
    /// The reason with this label.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|refusal| refusal.as_str() == label)
    }
}

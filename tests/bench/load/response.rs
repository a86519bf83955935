//! Parses a response just enough to know its status and its end.

enum State {
    Head,
    /// Remaining bytes of the body.
    Length(u64),
    /// Only the last bytes are kept, to recognise the last chunk.
    Chunked,
}

pub(crate) struct ResponseParser {
    state: State,
    bytes: Vec<u8>,
    pub(crate) status: u16,
    /// The server will close the connection.
    pub(crate) closes: bool,
    pub(crate) has_begun: bool,
}

const HEAD_END: &[u8] = b"\r\n\r\n";
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

impl ResponseParser {
    pub(crate) fn new() -> Self {
        Self { state: State::Head, bytes: Vec::new(), status: 0, closes: false, has_begun: false }
    }

    /// Starts the next response in the same memory.
    pub(crate) fn reset(&mut self) {
        self.state = State::Head;
        self.bytes.clear();
        self.has_begun = false;
    }

    /// Parses more bytes. True if the response is complete.
    pub(crate) fn push(&mut self, came: &[u8]) -> bool {
        self.has_begun = true;
        match &mut self.state {
            State::Head => {
                self.bytes.extend_from_slice(came);
                let end = self.bytes.windows(HEAD_END.len()).position(|window| window == HEAD_END);
                end.is_some_and(|end| self.head(end + HEAD_END.len()))
            }
            State::Length(left) => {
                *left = left.saturating_sub(came.len() as u64);
                *left == 0
            }
            State::Chunked => {
                self.bytes.extend_from_slice(came);
                let over = self.bytes.len().saturating_sub(LAST_CHUNK.len());
                self.bytes.drain(..over);
                self.bytes == LAST_CHUNK
            }
        }
    }

    /// The head is the first `length` bytes; the rest belongs to the body.
    fn head(&mut self, length: usize) -> bool {
        let (head, body) = self.bytes.split_at(length);
        let head = String::from_utf8_lossy(head);
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        self.status = status.and_then(|status| status.parse().ok()).unwrap_or(0);
        self.closes = false;
        let mut content_length = 0_u64;
        let mut chunked = false;
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                content_length = value.parse().unwrap_or(0);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                chunked = value.eq_ignore_ascii_case("chunked");
            } else if name.eq_ignore_ascii_case("connection") {
                self.closes = value.eq_ignore_ascii_case("close");
            }
        }
        if chunked {
            let body = body.to_vec();
            self.bytes.clear();
            self.state = State::Chunked;
            return self.push(&body);
        }
        let left = content_length.saturating_sub(body.len() as u64);
        self.state = State::Length(left);
        left == 0
    }
}

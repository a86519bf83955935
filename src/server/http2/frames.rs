//! Follows the frames of HTTP/2 (RFC 9113 §4.1) as their bytes pass, in whatever pieces, and counts what they cost.

use std::time::Duration;

use tokio::time::Instant;

/// What a client begins a connection with (RFC 9113 §3.4).
pub(in super::super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Bytes in front of the payload of a frame.
const FRAME_HEAD: usize = 9;

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHead {
    /// Bytes of the payload.
    length: usize,
    kind: u8,
}

/// Knows at which place of which frame a stream of bytes is.
#[derive(Debug)]
pub(super) struct FrameFollower {
    /// Of the preface.
    preface_left: usize,
    head: [u8; FRAME_HEAD],
    head_length: usize,
    kind: u8,
    payload_left: usize,
    /// The fields of a request have begun, and more frames of them have to follow.
    is_in_block: bool,
    /// Frames that have ended, those of one block of fields counted as one.
    ended: u64,
}

impl FrameFollower {
    /// In front of the preface of a client.
    pub(super) fn of_client() -> Self {
        Self { preface_left: PREFACE.len(), ..Self::of_server() }
    }

    /// In front of the first frame of a server.
    pub(super) fn of_server() -> Self {
        Self {
            preface_left: 0,
            head: [0; FRAME_HEAD],
            head_length: 0,
            kind: DATA,
            payload_left: 0,
            is_in_block: false,
            ended: 0,
        }
    }

    /// Calls `begins` with the head of each frame that begins in `bytes`.
    pub(super) fn follow(&mut self, mut bytes: &[u8], mut begins: impl FnMut(FrameHead)) {
        let preface = self.preface_left.min(bytes.len());
        self.preface_left -= preface;
        bytes = bytes.get(preface..).unwrap_or_default();
        while !bytes.is_empty() {
            if self.payload_left == 0 && self.head_length < FRAME_HEAD {
                let (head, rest) = bytes.split_at(bytes.len().min(FRAME_HEAD - self.head_length));
                for (place, byte) in self.head.iter_mut().skip(self.head_length).zip(head) {
                    *place = *byte;
                }
                self.head_length += head.len();
                bytes = rest;
                if self.head_length == FRAME_HEAD {
                    begins(self.begin_frame());
                }
                continue;
            }
            let payload = self.payload_left.min(bytes.len());
            self.payload_left -= payload;
            bytes = bytes.get(payload..).unwrap_or_default();
            if self.payload_left == 0 {
                self.end_frame();
            }
        }
    }

    /// The same for what the server sends. Returns whether a part of an answer is in `bytes`.
    pub(super) fn follow_answers(&mut self, bytes: &[u8]) -> bool {
        let is_of_answer = |kind| matches!(kind, DATA | HEADERS | CONTINUATION);
        let mut has_answer = !bytes.is_empty() && self.payload_left > 0 && is_of_answer(self.kind);
        self.follow(bytes, |frame| has_answer |= is_of_answer(frame.kind));
        has_answer
    }

    fn begin_frame(&mut self) -> FrameHead {
        let [a, b, c, kind, flags, ..] = self.head;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        if matches!(kind, HEADERS | CONTINUATION) {
            self.is_in_block = flags & END_HEADERS == 0;
        }
        (self.kind, self.payload_left) = (kind, length);
        if length == 0 {
            self.end_frame();
        }
        FrameHead { length, kind }
    }

    fn end_frame(&mut self) {
        self.head_length = 0;
        if !self.is_in_block {
            self.ended += 1;
        }
    }

    /// Whether a frame or a block of fields has begun that must arrive as one: any but the payload of a body.
    pub(super) fn is_in_head(&self) -> bool {
        let is_in_frame = self.head_length > 0 && (self.head_length < FRAME_HEAD || self.kind != DATA);
        self.preface_left > 0 || is_in_frame || self.is_in_block || self.ended == 0
    }

    /// Whether a part of a body has begun, and more of it has to follow.
    pub(super) fn is_in_data(&self) -> bool {
        self.payload_left > 0 && self.kind == DATA
    }

    pub(super) fn has_begun(&self) -> bool {
        self.preface_left < PREFACE.len()
    }

    /// Tells one frame from the next.
    pub(super) fn ended(&self) -> u64 {
        self.ended
    }
}

/// Frames that a client may send beyond those that its requests need. A frame costs one or more of it; requests, bodies
/// and what is read of responses pay for the frames that belong to them; and time does.
#[derive(Debug)]
pub(super) struct FrameBudget {
    left: i64,
    refilled_at: Instant,
}

const BURST: i64 = 4_000;
const PER_SECOND: i64 = 200;
/// What a request pays for: changes of windows and priorities, a ping.
const REQUEST: i64 = 16;
/// A request that is given up costs more than it pays for. It has cost the gateway as much as one that is answered.
const RESET: i64 = 32;
/// A body pays by bytes. One that comes byte by byte costs as many frames as it has bytes.
const BYTES_PER_FRAME: usize = 64;
/// So does a response, which a client acknowledges as it reads.
const SENT_BYTES_PER_FRAME: usize = 512;

impl FrameBudget {
    pub(super) fn new(now: Instant) -> Self {
        Self { left: BURST, refilled_at: now }
    }

    /// A frame was received. Takes the time only of connections that have used up half of their budget.
    pub(super) fn spend(&mut self, frame: FrameHead) {
        let paid = match frame.kind {
            HEADERS => REQUEST,
            DATA => i64::try_from(frame.length / BYTES_PER_FRAME).unwrap_or(i64::MAX),
            _ => 0,
        };
        let cost = if frame.kind == RST_STREAM { RESET } else { 1 };
        self.left = (self.left + paid - cost).min(BURST);
    }

    /// Bytes were sent.
    pub(super) fn earn(&mut self, bytes: usize) {
        self.left = (self.left + i64::try_from(bytes / SENT_BYTES_PER_FRAME).unwrap_or_default()).min(BURST);
    }

    /// Whether the client has sent too much.
    pub(super) fn is_used_up(&mut self, now: impl FnOnce() -> Instant) -> bool {
        if self.left > BURST / 2 {
            return false;
        }
        let now = now();
        let passed = now.saturating_duration_since(self.refilled_at).min(Duration::from_mins(1));
        let refill = PER_SECOND * i64::try_from(passed.as_millis()).unwrap_or_default() / 1_000;
        if refill > 0 {
            self.refilled_at = now;
            self.left = (self.left + refill).min(BURST);
        }
        self.left < 0
    }
}

//! The scenarios: kinds of requests, how they are sent, and which peers can answer them.

use crate::load::{Credential, Kind, Options};
use crate::peers::{Peer, Running, Software};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    kind: Kind,
    over_unix: bool,
    connections: usize,
    short: bool,
    credential: Credential,
    rate: f64,
}

const HIT: Scenario = Scenario {
    name: "ka",
    title: "answer from memory, 64 kept TCP connections, closed loop",
    kind: Kind::AuthorizedKeys,
    over_unix: false,
    connections: 64,
    short: false,
    credential: Credential::Secret,
    rate: 0.0,
};

const PASS: Scenario = Scenario {
    name: "pass",
    title: "access check (`POST /allowed`), which always goes on to Rails, 16 kept TCP connections",
    kind: Kind::Allowed,
    connections: 16,
    ..HIT
};

const KAS: Scenario = Scenario {
    name: "kas",
    title: "call of kas with a token, forwarded to Rails, 16 kept TCP connections",
    kind: Kind::Kas,
    ..PASS
};

pub(crate) const SCENARIOS: [Scenario; 12] = [
    HIT,
    Scenario { name: "ka-unix", title: "the same over a unix socket", over_unix: true, ..HIT },
    Scenario {
        name: "jwt",
        title: "the same as `ka`, for callers with a token of GitLab Shell",
        credential: Credential::Token,
        ..HIT
    },
    Scenario {
        name: "short",
        title: "answer from memory, a TCP connection for each request, 16 at once",
        connections: 16,
        short: true,
        ..HIT
    },
    Scenario {
        name: "short-unix",
        title: "the same over a unix socket",
        over_unix: true,
        connections: 16,
        short: true,
        ..HIT
    },
    Scenario {
        name: "open",
        title: "answer from memory, 64 kept TCP connections, open loop at 5,000 requests a second",
        rate: 5000.0,
        ..HIT
    },
    PASS,
    Scenario {
        name: "pass64",
        title: "the same, 64 connections: with 16, a peer that is faster than the load pays for its own wake-ups",
        connections: 64,
        ..PASS
    },
    KAS,
    Scenario { name: "kas64", title: "the same, 64 connections", connections: 64, ..KAS },
    Scenario { name: "blob", title: "answer of 64 MiB, 4 at once", kind: Kind::Blob, connections: 4, ..PASS },
    Scenario {
        name: "upload",
        title: "request of 64 MiB, 4 at once",
        kind: Kind::Upload,
        connections: 4,
        ..PASS
    },
];

/// The number of large bodies of a run, and their size.
const BODIES: u64 = 8;
pub(crate) const BODY_MIB: u64 = 64;

impl Scenario {
    pub(crate) fn named(name: &str) -> Option<Self> {
        SCENARIOS.into_iter().find(|scenario| scenario.name == name)
    }

    /// Whether its figure is per GiB instead of per request.
    pub(crate) fn is_large(&self) -> bool {
        matches!(self.kind, Kind::Blob | Kind::Upload)
    }

    /// Whether a peer can do it at all.
    pub(crate) fn suits(&self, peer: &Peer) -> bool {
        match (self.kind, self.credential) {
            (_, Credential::Token) => peer.software == Software::Railgate,
            (Kind::Kas, _) => matches!(peer.software, Software::Railgate | Software::Haproxy),
            (Kind::Allowed | Kind::Blob | Kind::Upload, _) => peer.software != Software::BareHyper,
            _ => true,
        }
    }

    /// The options of the load generator.
    pub(crate) fn load(&self, peer: &Running, seconds: f64, keys: u64) -> Options {
        let socket = peer.socket.display().to_string();
        Options {
            to: if self.over_unix { socket } else { peer.port.to_string() },
            kind: self.kind,
            credential: self.credential,
            connections: self.connections,
            // Latency needs more samples.
            seconds: if self.rate > 0.0 { seconds * 1.5 } else { seconds },
            requests: if self.is_large() { BODIES } else { 0 },
            rate: self.rate,
            short: self.short,
            keys,
            mebibytes: BODY_MIB,
            cpu_of: peer.process.pid(),
            ..Options::default()
        }
    }
}

//! The gateway in front of a real Rails.
//!
//! Each test starts the small GitLab in `tests/rails` (Rails, Grape, Puma) and the gateway's own
//! binary, and talks to both as the real clients do: bytes over a TCP or a unix socket. What reached
//! Rails is read off the counters of that Rails, never off a clock.
//!
//! Rails comes from Debian's packages; `tests/run` installs them.

// Tests fail by panicking.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]
// Nothing in a test can be reached from outside, so `pub` is just "for the other modules here".
#![allow(unreachable_pub)]

mod acceptance {
    // Support.
    mod client;
    mod credentials;
    mod harness;
    mod keys;
    #[path = "../../src/params/tests/readings.rs"]
    mod readings;
    #[path = "../gateway/scratch.rs"]
    mod scratch;
    #[path = "../gateway/valkey.rs"]
    #[expect(dead_code, reason = "the gateway tests use the rest, too")]
    mod valkey;
    #[path = "../gateway/waiting.rs"]
    mod waiting;

    // The tests.
    mod caching;
    mod cases;
    mod fleet;
    mod gitlab_eras;
    mod lifecycle;
    mod rack;
    mod restart_under_load;
    mod same_responses;
    mod servers;
    mod stale;
    mod todays_gitlab;
    mod unauthenticated_clients;
}

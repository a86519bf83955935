//! The gateway in front of a real Rails.
//!
//! Each test starts the small GitLab in `tests/rails` (Rails, Grape, Puma) and the gateway's own
//! binary, and talks to both as the real clients do: bytes over a TCP or a unix socket. What went
//! past the gateway is read off the counters that the Rails keeps, never off a clock.
//!
//! Rails comes from Debian's packages; `tests/run` installs them.

// A test says what is wrong by panicking.
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
    // What the tests stand on.
    mod credentials;
    mod keys;
    mod stage;
    mod wire;

    // The tests.
    mod caching;
    mod cases;
    mod eras;
    mod life;
    mod restart;
    mod same_answers;
    mod servers;
    mod stale;
    mod strangers;
    mod today;
}

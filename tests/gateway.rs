//! The whole gateway, in the test's own process, between a client and a Rails that both do as
//! they are told: every byte of either side is the test's.
//!
//! Nothing here depends on how fast the machine is. What went past the gateway is read off what
//! the scripted Rails wrote down; whoever has to wait, waits for an event or a counter.

// A test says what is wrong by panicking.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs
)]
// Nothing in a test can be reached from outside, so `pub` is just "for the other modules here".
#![allow(unreachable_pub)]

mod gateway {
    // What the tests stand on.
    mod certificates;
    mod client;
    mod clocks;
    mod credentials;
    mod fake;
    mod log;
    mod stage;

    // The tests.
    mod admin;
    mod answers;
    mod away;
    mod bodies;
    mod broken_rails;
    mod caching;
    mod callers;
    mod causes;
    mod connections;
    mod crowds;
    mod demo;
    mod doctor;
    mod draining;
    mod early_answers;
    mod first_run;
    mod framing;
    mod half_closed;
    mod hanging;
    mod hangups;
    mod headers;
    mod hook_install;
    mod hooks;
    mod http2;
    mod inspect;
    mod kas;
    mod kas_burst;
    mod kept_connections;
    mod large;
    mod listeners;
    mod loops;
    mod memory;
    mod odd_answers;
    mod odd_forms;
    mod pinned;
    mod pressure;
    mod proxied;
    mod purge;
    mod retries;
    mod scrape;
    mod secrecy;
    mod servers;
    mod shadow;
    mod signals;
    mod stale;
    mod strangers;
    mod targets;
    mod tls;
    mod trailers;
    mod translation;
    mod unread_log;
    mod unverified;
    mod warm;
}

//! The whole gateway, in the test's own process, between a client and a scripted Rails: the tests decide
//! every byte on both sides.
//!
//! Nothing here depends on the speed of the machine. What reached Rails is read off what the scripted
//! Rails recorded, and tests wait for events and counters only.

// Tests fail by panicking.
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
    // Support.
    mod browser;
    mod certificates;
    mod client;
    mod clock_skew;
    mod collector;
    mod credentials;
    mod fake_rails;
    mod frames;
    mod harness;
    mod log;
    mod pods;
    mod scratch;
    mod valkey;
    mod waiting;

    // The tests.
    mod admin;
    mod admission;
    mod another_rails;
    mod bodies;
    mod broken_rails;
    mod caching;
    mod client_disconnects;
    mod commands;
    mod connection_reuse;
    mod connections;
    mod containers;
    mod credential_translation;
    mod dashboards;
    mod demo;
    mod doctor;
    mod documentation;
    mod draining;
    mod early_responses;
    mod first_run;
    mod fleet_connection;
    mod fleet_losses;
    mod fleet_operators;
    mod fleet_outages;
    mod fleet_purges;
    mod fleet_servers;
    mod fleet_shared;
    mod fleet_writers;
    mod framing;
    mod half_closed;
    mod hand_over;
    mod headers;
    mod hook_install;
    mod hooks;
    mod hpack;
    mod http2;
    mod http2_attacks;
    mod http2_clients;
    mod image;
    mod inspect;
    mod kas_auth;
    mod kas_burst;
    mod large_bodies;
    mod listener_callers;
    mod listener_peers;
    mod listener_tls;
    mod listeners;
    mod login_retries;
    mod loops;
    mod memory;
    mod metrics_formats;
    mod optimised_build;
    mod packages;
    mod pinned_certificates;
    mod proxy_protocol;
    mod purge;
    mod rails_away;
    mod rails_behind_proxy;
    mod reload;
    mod responses;
    mod routing;
    mod secret_overlap;
    mod secret_redaction;
    mod secret_rotation;
    mod selinux;
    mod servers;
    mod service_manager;
    mod shadow;
    mod shell_auth;
    mod signals;
    mod single_flight;
    mod socket_activation;
    mod stale;
    mod stalled_threads;
    mod status_page;
    mod status_page_in_browser;
    mod tls;
    mod tolerated_requests;
    mod tolerated_responses;
    mod trace_export;
    mod traces;
    mod trailers;
    mod unauthenticated_clients;
    mod unreachable_causes;
    mod unread_log;
    mod unverified_bodies;
    mod upgrade;
    mod warm_restart;
}

//! The load generator: one thread, one epoll loop, raw HTTP over raw sockets.
//!
//! **Closed loop**: every connection always has one request in flight; look at the CPU time. **Open loop**
//! (`--rate`): requests come at random (Poisson) whether or not earlier ones are answered, and their latency
//! counts from the time they were due, so that a server that stalls is charged for the queue it causes.
//!
//! **It does not sleep** unless configured to, and neither does Rails while requests come. Sending to a
//! sleeping process includes the cost of waking it, on another core often more than that of a small request.
//! A server that is faster than its callers never meets a sleeping one, a slower one meets one every time:
//! the measurement would show on which side of the load generator's speed a server is, not what it needs.

mod drive;
mod requests;
mod response;
mod slot;

use serde_json::{Value, json};

use crate::Fallible;

pub(crate) use self::requests::{Credential, Kind};
pub(crate) use self::response::ResponseParser;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// A port of 127.0.0.1, or the path of a unix socket.
    #[arg(long)]
    pub(crate) to: String,
    #[arg(long, value_enum, default_value_t = Kind::AuthorizedKeys)]
    pub(crate) kind: Kind,
    #[arg(long, value_enum, default_value_t = Credential::Secret)]
    pub(crate) credential: Credential,
    #[arg(long, default_value_t = 64)]
    pub(crate) connections: usize,
    /// How many seconds new requests are sent.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) seconds: f64,
    /// How many requests are sent; 0 is no limit.
    #[arg(long, default_value_t = 0)]
    pub(crate) requests: u64,
    /// Warm-up requests before the measured ones.
    #[arg(long, default_value_t = 0)]
    pub(crate) warm: u64,
    /// Requests a second of the open loop; 0 is the closed loop.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) rate: f64,
    /// A connection for each request, closed by the client after the response, as GitLab Shell does.
    #[arg(long)]
    pub(crate) short: bool,
    /// Sleep while idle. An open loop never does: epoll counts in milliseconds.
    #[arg(long)]
    pub(crate) sleeps: bool,
    /// How many keys are requested in turn.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) keys: u64,
    /// The number of the first key.
    #[arg(long, default_value_t = 0)]
    pub(crate) first_key: u64,
    /// The step from one key to the next.
    #[arg(long, default_value_t = 1)]
    pub(crate) stride: u64,
    /// The percentage of requests for a new key.
    #[arg(long, default_value_t = 0)]
    pub(crate) misses: u64,
    /// Size of `blob` and `upload`.
    #[arg(long, default_value_t = 64)]
    pub(crate) mebibytes: u64,
    /// The process whose CPU time counts, with all its descendants.
    #[arg(long, default_value_t = 0)]
    pub(crate) cpu_of: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            to: String::new(),
            kind: Kind::AuthorizedKeys,
            credential: Credential::Secret,
            connections: 64,
            seconds: 1.0,
            requests: 0,
            warm: 0,
            rate: 0.0,
            short: false,
            sleeps: false,
            keys: 10_000,
            first_key: 0,
            stride: 1,
            misses: 0,
            mebibytes: 64,
            cpu_of: 0,
        }
    }
}

impl Options {
    /// These options as a command line.
    pub(crate) fn to_arguments(&self) -> Vec<String> {
        let mut arguments = vec!["load".to_owned()];
        for (name, value) in [
            ("--to", self.to.clone()),
            ("--kind", self.kind.name()),
            ("--credential", self.credential.name()),
            ("--connections", self.connections.to_string()),
            ("--seconds", self.seconds.to_string()),
            ("--requests", self.requests.to_string()),
            ("--warm", self.warm.to_string()),
            ("--rate", self.rate.to_string()),
            ("--keys", self.keys.to_string()),
            ("--first-key", self.first_key.to_string()),
            ("--stride", self.stride.to_string()),
            ("--misses", self.misses.to_string()),
            ("--mebibytes", self.mebibytes.to_string()),
            ("--cpu-of", self.cpu_of.to_string()),
        ] {
            arguments.extend([name.to_owned(), value]);
        }
        arguments.extend(self.short.then(|| "--short".to_owned()));
        arguments.extend(self.sleeps.then(|| "--sleeps".to_owned()));
        arguments
    }
}

/// The results of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Figures {
    /// Requests with a response.
    pub(crate) responses: u64,
    /// Responses of another status than expected, and requests without a response.
    pub(crate) errors: u64,
    pub(crate) seconds: f64,
    /// CPU time of the measured process per response.
    pub(crate) cpu_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    /// The share of steal time of the machine.
    pub(crate) steal: f64,
    /// How often the measured process slept, per response.
    pub(crate) sleeps: f64,
    /// Peak memory of the measured process.
    pub(crate) peak_mib: f64,
}

impl Figures {
    pub(crate) fn per_second(&self) -> f64 {
        self.responses as f64 / self.seconds
    }

    fn to_json(&self) -> Value {
        json!({
            "answers": self.responses,
            "errors": self.errors,
            "seconds": self.seconds,
            "cpu_us": self.cpu_us,
            "p50_us": self.p50_us,
            "p99_us": self.p99_us,
            "p999_us": self.p999_us,
            "sleeps": self.sleeps,
        })
    }

    /// Parses the output of the load generator.
    pub(crate) fn from_json(text: &[u8]) -> Fallible<Self> {
        let value: Value = serde_json::from_slice(text)?;
        let number = |name: &str| value.get(name).and_then(Value::as_f64).ok_or(format!("no {name}"));
        Ok(Self {
            responses: number("answers")? as u64,
            errors: number("errors")? as u64,
            seconds: number("seconds")?,
            cpu_us: number("cpu_us")?,
            p50_us: number("p50_us")?,
            p99_us: number("p99_us")?,
            p999_us: number("p999_us")?,
            sleeps: number("sleeps")?,
            steal: 0.0,
            peak_mib: 0.0,
        })
    }
}

pub(crate) fn run(options: &Options) -> Fallible<()> {
    // Timers of ordinary processes may be 50 µs late; this reduces it.
    let _ = std::fs::write("/proc/self/timerslack_ns", "1");
    println!("{}", drive::run(options)?.to_json());
    Ok(())
}

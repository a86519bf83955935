//! Counts instructions, and what they depend on besides the code.

use std::process::{Command, Output};

use crate::Fallible;
use crate::operations::Operation;

/// The instructions of one operation.
pub(crate) fn count(operation: &Operation) -> Fallible<u64> {
    let [some, twice] = [1, 2].map(|factor| instructions(operation, operation.times * factor));
    let (some, twice) = (some?, twice?);
    let difference = twice.checked_sub(some).ok_or("twice as often took less")?;
    Ok((difference + operation.times / 2) / operation.times)
}

/// All instructions of a process that repeats the operation so many times.
fn instructions(operation: &Operation, times: u64) -> Fallible<u64> {
    // A fixed number of digits, since arguments are part of the stack.
    let output = under_valgrind(&["repeat", operation.name, &format!("{times:08}")])?;
    let log = String::from_utf8_lossy(&output.stderr);
    // `==123== I   refs:      1,234,567`
    let count = log.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        (words.next() == Some("I") && words.next() == Some("refs:")).then(|| words.next())?
    });
    let count = count.ok_or_else(|| format!("valgrind said nothing of instructions:\n{log}"))?;
    Ok(count.replace(',', "").parse()?)
}

/// Cachegrind without caches counts instructions and nothing else, which is the fastest way to do it.
fn under_valgrind(arguments: &[&str]) -> Fallible<Output> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]);
    command.arg(std::env::current_exe()?).args(arguments);
    // The environment is part of the stack, and some variables change how libraries work.
    command.env_clear();
    for name in ["PATH", "TMPDIR"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    let output = command.output().map_err(|error| format!("valgrind cannot be started: {error}"))?;
    if output.status.success() {
        Ok(output)
    } else {
        let arguments = arguments.join(" ");
        Err(format!("{arguments}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)).into())
    }
}

/// The conditions, besides the code, on which counts depend. The C compiler builds mimalloc and aws-lc, the
/// C library has `memcpy` and the like.
pub(crate) fn circumstances() -> Fallible<Vec<(String, String)>> {
    let processor = under_valgrind(&["processor"])?;
    Ok([
        ("rustc", first_line("rustc", "--version")?),
        ("valgrind", first_line("valgrind", "--version")?),
        ("cc", first_line("cc", "--version")?),
        ("libc", first_line("getconf", "GNU_LIBC_VERSION").unwrap_or_else(|_| "unknown".to_owned())),
        ("processor", String::from_utf8_lossy(&processor.stdout).trim().to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into())
}

fn first_line(program: &str, argument: &str) -> Fallible<String> {
    let output =
        Command::new(program).arg(argument).output().map_err(|error| format!("{program}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().map(str::to_owned).ok_or_else(|| format!("{program} has no version").into())
}

/// The architecture, and the CPU features by which libraries choose their code at run time.
#[cfg(target_arch = "x86_64")]
pub(crate) fn processor() -> String {
    macro_rules! features {
        ($($name:tt)+) => {
            [$(($name, std::is_x86_feature_detected!($name))),+]
        };
    }
    let features = features!(
        "sse3" "ssse3" "sse4.1" "sse4.2" "pclmulqdq" "aes" "sha" "avx" "avx2" "avx512f" "avx512bw" "avx512vl"
        "bmi1" "bmi2" "adx" "fma" "f16c" "lzcnt" "popcnt" "movbe" "rdrand" "rdseed" "vaes" "vpclmulqdq" "gfni"
    );
    let found = features.iter().filter(|(_, found)| *found).map(|(name, _)| *name);
    std::iter::once("x86_64:").chain(found).collect::<Vec<_>>().join(" ")
}

/// The architecture.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn processor() -> String {
    std::env::consts::ARCH.to_owned()
}

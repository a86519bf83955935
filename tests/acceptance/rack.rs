//! The table of how Rack reads parameters, against the Rack that is installed.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::readings::{ERROR, READINGS, SAME};

/// Prints the release, and what it makes of each line, as JSON.
const PROGRAM: &str = r#"
    puts Rack.release
    STDIN.each_line(chomp: true) do |line|
        raw = JSON.parse(line).b
        read = begin
            JSON.generate(Rack::Utils.parse_nested_query(raw))
        rescue Rack::QueryParser::InvalidParameterError, Rack::QueryParser::ParameterTypeError
            "an error"
        end
        puts read
    end
"#;

#[test]
fn the_installed_rack_reads_parameters_as_in_the_table() {
    let mut ruby = Command::new("ruby");
    ruby.args(["-rrack", "-rjson", "-e", PROGRAM]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut ruby = ruby.spawn().expect("ruby is installed; if not, run tests/run, which does that");
    let lines: Vec<u8> = READINGS
        .iter()
        .flat_map(|(raw, ..)| [Value::from(*raw).to_string(), "\n".to_owned()].concat().into_bytes())
        .collect();
    ruby.stdin.take().unwrap().write_all(&lines).unwrap();
    let output = ruby.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    let (release, read) = printed.split_once('\n').unwrap();
    println!("Rack {release}");
    let is_rack_2 = release.starts_with("2.");
    assert!(is_rack_2 || release.starts_with("3."), "the table has no column for Rack {release}");
    assert_eq!(read.lines().count(), READINGS.len());
    let json = |text: &str| serde_json::from_str::<Value>(text).ok();
    let mut differences = Vec::new();
    for ((raw, rack_2, rack_3, _), read) in READINGS.iter().zip(read.lines()) {
        let expected = if is_rack_2 || *rack_3 == SAME { *rack_2 } else { *rack_3 };
        // What is no JSON is an error.
        if json(read) != json(expected) || json(read).is_none() && (read, expected) != (ERROR, ERROR) {
            differences.push(format!("{raw}: {read}, but {expected} in the table"));
        }
    }
    assert!(differences.is_empty(), "Rack {release}: {differences:#?}");
}

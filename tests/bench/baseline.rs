//! The accepted instruction counts of each operation, and the conditions under which they were counted.

use std::fmt::Write as _;
use std::fs;

use toml::{Table, Value};

use crate::Fallible;
use crate::operations::Operation;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/instructions.baseline");
const CIRCUMSTANCES: &str = "counted-with";
const COUNTS: &str = "instructions";

#[derive(Default)]
pub(crate) struct Baseline {
    circumstances: Vec<(String, String)>,
    counts: Vec<(String, u64)>,
}

impl Baseline {
    pub(crate) fn new(circumstances: Vec<(String, String)>, counts: &[(&Operation, u64)]) -> Self {
        let counts = counts.iter().map(|(operation, count)| (operation.name.to_owned(), *count)).collect();
        Self { circumstances, counts }
    }

    /// The baseline of the repository.
    pub(crate) fn read() -> Fallible<Self> {
        let text = fs::read_to_string(FILE).map_err(|error| {
            format!("{FILE}: {error}; `tests/bench/instructions --accept` writes a new one")
        })?;
        Self::parse(&text).map_err(|error| format!("{FILE}: {error}").into())
    }

    fn parse(text: &str) -> Fallible<Self> {
        let table: Table = text.parse()?;
        let section = |name: &str| {
            table.get(name).and_then(Value::as_table).ok_or_else(|| format!("[{name}] is missing"))
        };
        let mut baseline = Self::default();
        for (name, value) in section(CIRCUMSTANCES)? {
            let value = value.as_str().ok_or_else(|| format!("{name} is no text"))?;
            baseline.circumstances.push((name.clone(), value.to_owned()));
        }
        for (name, value) in section(COUNTS)? {
            let count = value.as_integer().and_then(|count| u64::try_from(count).ok());
            baseline.counts.push((name.clone(), count.ok_or_else(|| format!("{name} is no count"))?));
        }
        Ok(baseline)
    }

    pub(crate) fn write(&self) -> Fallible<()> {
        let mut text = String::from("# Written by `tests/bench/instructions --accept`.\n");
        write!(text, "\n[{CIRCUMSTANCES}]\n")?;
        for (name, value) in &self.circumstances {
            writeln!(text, "{name} = {}", Value::from(value.as_str()))?;
        }
        write!(text, "\n[{COUNTS}]\n")?;
        for (name, count) in &self.counts {
            writeln!(text, "{name} = {count}")?;
        }
        fs::write(FILE, text).map_err(|error| format!("{FILE}: {error}").into())
    }

    /// The accepted count of an operation.
    pub(crate) fn count(&self, name: &str) -> Option<u64> {
        self.counts.iter().find(|(known, _)| known == name).map(|(_, count)| *count)
    }

    /// The conditions that differ now: their name, their value then, and their value now.
    pub(crate) fn differences<'a>(
        &'a self,
        now: &'a [(String, String)],
    ) -> impl Iterator<Item = (&'a str, &'a str, &'a str)> {
        now.iter().filter_map(|(name, value)| {
            let known = self.circumstances.iter().find(|(known, _)| known == name);
            let then = known.map_or("not known", |(_, then)| then.as_str());
            (then != value).then_some((name.as_str(), then, value.as_str()))
        })
    }
}

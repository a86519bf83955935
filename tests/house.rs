//! Holds the source to the plan of the house: who may import whom, how large a room may grow, and
//! which words have no place in it.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Every top-level module and its rank. A module imports only lower ranks; equal ranks are
/// strangers.
const RANKS: [(&str, u8); 33] = [
    ("authority", 0),
    ("body", 1),
    ("clock", 0),
    ("counters", 0),
    ("file", 0),
    ("header", 0),
    ("log", 1),
    ("heartbeat", 0),
    ("histogram", 0),
    ("params", 0),
    ("progress", 0),
    ("refusal", 0),
    ("request_span", 1),
    ("secret", 1),
    ("strict_base64", 0),
    ("write_batch", 0),
    ("route", 1),
    ("auth", 2),
    ("cache", 2),
    ("server", 2),
    ("upstream", 2),
    ("failure", 3),
    ("hooks", 4),
    ("exchange", 4),
    ("metrics", 5),
    ("admin", 6),
    ("layer", 6),
    ("stack", 7),
    ("config", 8),
    ("warm", 9),
    ("worker", 8),
    ("lib", 10),
    ("main", 11),
];

const LONGEST_FILE: usize = 350;
const LONGEST_TESTS_IN_FILE: usize = 150;
const LONGEST_FUNCTION: usize = 60;

/// A source file: its name below `src`, and its lines.
struct Source {
    name: String,
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    assert!(files.len() > 30, "the sources were not found");
    files
        .into_iter()
        .map(|path| Source {
            name: path.strip_prefix(&root).unwrap().display().to_string(),
            text: fs::read_to_string(&path).unwrap(),
        })
        .collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

impl Source {
    /// The room that the file belongs to.
    fn room(&self) -> &str {
        let first = self.name.split('/').next().unwrap();
        match first.trim_end_matches(".rs") {
            "cli" => "main",
            room => room,
        }
    }

    fn is_test(&self) -> bool {
        self.name.ends_with("tests.rs") || self.name.contains("/tests/") || self.name.ends_with("testing.rs")
    }

    /// The file up to its tests.
    fn code(&self) -> &str {
        self.text.split("#[cfg(test)]\nmod tests {").next().unwrap()
    }

    /// The rooms that the code names: `crate::room::…` and the room in `use crate::{room, …}`.
    fn imports(&self) -> BTreeSet<String> {
        let mut rooms = BTreeSet::new();
        let is_code = |line: &&str| !line.trim_start().starts_with("//");
        let code: Vec<&str> = self.code().lines().filter(is_code).collect();
        let code = code.join("\n");
        for (at, _) in code.match_indices("crate::") {
            let rest = code[at..].trim_start_matches("crate::");
            match rest.strip_prefix('{') {
                Some(list) => {
                    let list = list.split(';').next().unwrap();
                    let mut depth = 0;
                    for part in list.split_inclusive(['{', '}', ',']) {
                        let name: String = part.trim().chars().take_while(|c| is_name(*c)).collect();
                        if depth == 0 && !name.is_empty() {
                            rooms.insert(name);
                        }
                        depth += i32::from(part.ends_with('{')) - i32::from(part.ends_with('}'));
                    }
                }
                None => {
                    rooms.insert(rest.chars().take_while(|c| is_name(*c)).collect());
                }
            }
        }
        rooms
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn rank(room: &str) -> Option<u8> {
    RANKS.iter().find(|(name, _)| *name == room).map(|(_, rank)| *rank)
}

#[test]
fn every_room_has_a_rank() {
    let rooms: BTreeSet<_> = sources().iter().map(|source| source.room().to_owned()).collect();
    let ranked: BTreeSet<_> = RANKS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(rooms, ranked);
}

#[test]
fn rooms_import_only_lower_ranks() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test() && source.room() != "main") {
        let own = rank(source.room()).unwrap();
        for import in source.imports() {
            if let Some(other) = rank(&import)
                && import != source.room()
                && other >= own
            {
                wrong.push(format!("{} imports {import}, which has no lower rank", source.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_reader_of_imports_can_see() {
    let source = |text: &str| Source { name: "layer/x.rs".into(), text: text.into() };
    let imports = |text: &str| source(text).imports().into_iter().collect::<Vec<_>>();
    assert_eq!(imports("use crate::cache::{a, b};"), ["cache"]);
    assert_eq!(imports("use crate::{auth, cache::{Key, Entry}, upstream};"), ["auth", "cache", "upstream"]);
    assert_eq!(imports("let x = crate::stack::build();"), ["stack"]);
    let stack = source("use crate::stack::build;");
    assert!(rank("stack").unwrap() >= rank(stack.room()).unwrap());
}

#[test]
fn files_and_functions_stay_small() {
    let mut wrong = Vec::new();
    for source in sources() {
        let lines = source.code().lines().count();
        if !source.is_test() && lines > LONGEST_FILE {
            wrong.push(format!("{} has {lines} lines; split it", source.name));
        }
        let tests = source.text.lines().count() - lines;
        if tests > LONGEST_TESTS_IN_FILE {
            wrong.push(format!("{} has {tests} lines of tests; move them to a file", source.name));
        }
        if !source.is_test() {
            wrong.extend(long_functions(&source));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// rustfmt closes a function at the indentation at which it began.
fn long_functions(source: &Source) -> Vec<String> {
    let lines: Vec<&str> = source.code().lines().collect();
    let mut long = Vec::new();
    for (begin, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let is_function = line.trim_start().split(' ').take(4).any(|word| word == "fn");
        if !is_function || line.trim_start().starts_with("//") || line.trim_end().ends_with(';') {
            continue;
        }
        let close = format!("{}}}", " ".repeat(indent));
        let length = lines.iter().skip(begin).position(|line| **line == close).unwrap_or(0) + 1;
        if length > LONGEST_FUNCTION {
            long.push(format!("{}:{} is a function of {length} lines", source.name, begin + 1));
        }
    }
    long
}

#[test]
fn words_that_have_no_place() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (number, line) in source.code().lines().enumerate() {
            let mut words = vec!["TODO", "FIXME", "XXX", "#[allow(dead_code"];
            let room = source.room();
            if room != "clock" && room != "main" {
                words.extend(["Instant::now()", "SystemTime::now()"]);
            }
            if room != "main" {
                words.extend(["println!", "std::env::var", "process::exit"]);
            }
            if room != "route" && room != "main" && room != "lib" {
                words.push("\"/api/v4/internal");
            }
            for word in words {
                if line.contains(word) && !source.is_test() {
                    wrong.push(format!("{}:{}: {word}", source.name, number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_mod_rs() {
    for source in sources() {
        assert!(!source.name.ends_with("mod.rs"), "{}: use foo.rs and foo/", source.name);
    }
}

//! Checks the layout of the source: which modules may import which, that no files import each other in a
//! circle, how long files and functions may be, and which words are not allowed.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]
// Nothing in a test can be reached from outside, so `pub` is just "for the other modules here".
#![allow(unreachable_pub)]

mod house {
    pub mod imports;
}

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use self::house::imports::{File, Imports, is_test};

/// Every top-level module and its rank. A module imports only modules of lower ranks.
const RANKS: [(&str, u8); 41] = [
    ("authority", 0),
    ("body", 1),
    ("certificates", 1),
    ("clock", 0),
    ("counters", 0),
    ("file", 0),
    ("framing", 0),
    ("header", 0),
    ("json_response", 0),
    ("log", 1),
    ("heartbeat", 0),
    ("histogram", 0),
    ("params", 0),
    ("progress", 1),
    ("refusal", 0),
    ("reload", 0),
    ("request_span", 1),
    ("secret", 1),
    ("service_manager", 1),
    ("strict_base64", 0),
    ("trace", 1),
    ("trace_context", 0),
    ("write_batch", 0),
    ("route", 1),
    ("auth", 2),
    ("cache", 2),
    ("server", 2),
    ("upstream", 2),
    ("failure", 3),
    ("fleet", 3),
    ("otlp", 3),
    ("hooks", 4),
    ("exchange", 4),
    ("metrics", 5),
    ("admin", 6),
    ("layer", 6),
    ("stack", 7),
    ("config", 8),
    ("gateway", 9),
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
    /// The module that the file belongs to.
    fn module(&self) -> &str {
        module_of(&self.name)
    }

    /// The file up to its tests.
    fn code(&self) -> &str {
        self.text.split("#[cfg(test)]\nmod tests {").next().unwrap()
    }
}

fn module_of(file: &str) -> &str {
    match file.split('/').next().unwrap().trim_end_matches(".rs") {
        "cli" => "main",
        module => module,
    }
}

fn imports(sources: &[Source]) -> Imports {
    let files = sources.iter().map(|source| File { name: source.name.clone(), text: source.text.clone() });
    Imports::read(&files.collect::<Vec<_>>())
}

fn rank(module: &str) -> Option<u8> {
    RANKS.iter().find(|(name, _)| *name == module).map(|(_, rank)| *rank)
}

#[test]
fn every_room_has_a_rank() {
    let modules: BTreeSet<_> = sources().iter().map(|source| source.module().to_owned()).collect();
    let ranked: BTreeSet<_> = RANKS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(modules, ranked);
}

#[test]
fn modules_import_only_lower_ranks() {
    let mut wrong = Vec::new();
    for (file, imports) in imports(&sources()).edges() {
        for (imported, path) in imports {
            let (own, other) = (module_of(file), module_of(imported));
            if own != other && own != "main" && rank(other) >= rank(own) {
                wrong.push(format!("{file} imports {path} of {imported}, which has no lower rank"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let imports = imports(&sources());
    let mut wrong = Vec::new();
    for (number, circle) in imports.circles().iter().enumerate() {
        for (file, imports) in circle {
            let of = |(to, path): (&&str, &String)| format!("circle {number}: {file} imports {path} of {to}");
            wrong.extend(imports.iter().map(of));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_and_functions_stay_small() {
    let mut wrong = Vec::new();
    for source in sources() {
        let lines = source.code().lines().count();
        if !is_test(&source.name) && lines > LONGEST_FILE {
            wrong.push(format!("{} has {lines} lines; split it", source.name));
        }
        let tests = source.text.lines().count() - lines;
        if tests > LONGEST_TESTS_IN_FILE {
            wrong.push(format!("{} has {tests} lines of tests; move them to a file", source.name));
        }
        if !is_test(&source.name) {
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
            let module = source.module();
            if module != "clock" && module != "main" {
                words.extend(["Instant::now()", "SystemTime::now()"]);
            }
            if module != "main" {
                words.extend(["println!", "process::exit"]);
            }
            if module != "main" && module != "config" {
                words.push("std::env::var");
            }
            if module != "route" && module != "main" && module != "lib" {
                words.push("\"/api/v4/internal");
            }
            for word in words {
                if line.contains(word) && !is_test(&source.name) {
                    wrong.push(format!("{}:{}: {word}", source.name, number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Two would disagree on what they accept, and rustls would not know which one to take.
#[test]
fn one_library_of_cryptography_is_linked() {
    let list = ["tree", "--locked", "--offline", "--edges", "normal", "--prefix", "none"];
    let listed = std::process::Command::new(env!("CARGO")).args(list).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let crates: BTreeSet<&str> = listed.lines().filter_map(|line| line.split(' ').next()).collect();
    let others = ["ring", "openssl", "openssl-sys", "graviola", "boring", "mbedtls"];
    assert!(crates.contains("aws-lc-rs") && others.iter().all(|other| !crates.contains(other)), "{crates:?}");
}

#[test]
fn no_mod_rs() {
    for source in sources() {
        assert!(!source.name.ends_with("mod.rs"), "{}: use foo.rs and foo/", source.name);
    }
}

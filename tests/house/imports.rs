//! Which file imports which, as far as the text tells: by `use`, and by paths in the code. A name that a
//! module re-exports is resolved to the file that defines it. Tests are not read, nor are traits that only
//! bring methods, which name no file where they are called.

use std::collections::{BTreeMap, BTreeSet};

/// A file of the source: its name below `src`, and its text.
#[derive(Clone, Debug)]
pub struct File {
    pub name: String,
    pub text: String,
}

/// The imports of all files.
#[derive(Debug)]
pub struct Imports {
    modules: BTreeMap<Vec<String>, Module>,
}

/// What one file declares and names.
#[derive(Debug)]
struct Module {
    file: String,
    /// What `use` brings in: the name here, and what it stands for.
    aliases: BTreeMap<String, Alias>,
    /// The paths in the rest of the code.
    paths: BTreeSet<Vec<String>>,
}

#[derive(Clone, Debug)]
struct Alias {
    path: Vec<String>,
    is_exported: bool,
}

/// What a path leads to.
enum Target {
    /// An item that this module defines.
    Item(Vec<String>),
    /// A module as such.
    Module,
}

/// The module of the binary; that of the library is the empty path.
const BINARY: &str = "main";

impl Imports {
    pub fn read(files: &[File]) -> Self {
        let modules = files.iter().filter(|file| !is_test(&file.name));
        Self { modules: modules.map(|file| (module_of(&file.name), Module::read(file))).collect() }
    }

    /// Every file that another one imports, with one path that does so.
    pub fn edges(&self) -> BTreeMap<&str, BTreeMap<&str, String>> {
        let mut edges: BTreeMap<&str, BTreeMap<&str, String>> = BTreeMap::new();
        for (own, module) in &self.modules {
            let imported =
                module.aliases.values().filter(|alias| !alias.is_exported).map(|alias| &alias.path);
            for path in module.paths.iter().chain(imported) {
                if let Some(Target::Item(target)) = self.resolve(own, path, 0)
                    && let Some(target) = self.modules.get(&target)
                    && target.file != module.file
                {
                    let to = edges.entry(&module.file).or_default();
                    to.entry(&target.file).or_insert_with(|| path.join("::"));
                }
            }
        }
        edges
    }

    /// Each circle: the files that import each other, directly or not, and the imports among them.
    pub fn circles(&self) -> Vec<BTreeMap<&str, BTreeMap<&str, String>>> {
        let edges = self.edges();
        let reached: BTreeMap<&str, BTreeSet<&str>> =
            edges.keys().map(|file| (*file, reachable(file, &edges))).collect();
        let mut circles: Vec<BTreeMap<&str, BTreeMap<&str, String>>> = Vec::new();
        for (file, from_here) in &reached {
            if !from_here.contains(file) || circles.iter().any(|circle| circle.contains_key(file)) {
                continue;
            }
            let is_member = |other: &str| {
                from_here.contains(other) && reached.get(other).is_some_and(|back| back.contains(file))
            };
            let members = from_here.iter().copied().filter(|other| is_member(other));
            circles.push(
                members
                    .map(|member| {
                        let to = edges[member].iter().filter(|(to, _)| is_member(to));
                        (member, to.map(|(to, path)| (*to, path.clone())).collect())
                    })
                    .collect(),
            );
        }
        circles
    }

    fn resolve(&self, own: &[String], path: &[String], depth: usize) -> Option<Target> {
        let (first, mut rest) = path.split_first()?;
        let mut module = match first.as_str() {
            _ if depth > 8 => return None,
            "crate" if own.first().is_some_and(|root| root == BINARY) => vec![BINARY.to_owned()],
            "crate" | "railgate" => Vec::new(),
            "self" => own.to_vec(),
            "super" => own.split_last()?.1.to_vec(),
            name => match self.modules.get(own)?.aliases.get(name) {
                Some(alias) if alias.path.first() != Some(first) => {
                    let path: Vec<_> = alias.path.iter().chain(rest).cloned().collect();
                    return self.resolve(own, &path, depth + 1);
                }
                _ => [own, &[name.to_owned()]].concat(),
            },
        };
        if !self.modules.contains_key(&module) {
            return None;
        }
        while let Some((name, behind)) = rest.split_first() {
            let child = if name == "super" {
                module.split_last()?.1.to_vec()
            } else {
                [&module[..], std::slice::from_ref(name)].concat()
            };
            if self.modules.contains_key(&child) {
                (module, rest) = (child, behind);
                continue;
            }
            let alias = self.modules[&module].aliases.get(name);
            let exported = alias.and_then(|alias| {
                let path: Vec<_> = alias.path.iter().chain(behind).cloned().collect();
                self.resolve(&module, &path, depth + 1)
            });
            return Some(exported.unwrap_or(Target::Item(module)));
        }
        Some(Target::Module)
    }
}

/// The files that `from` imports, directly or not.
fn reachable<'f>(from: &str, edges: &BTreeMap<&'f str, BTreeMap<&'f str, String>>) -> BTreeSet<&'f str> {
    let (mut found, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(file) = open.pop() {
        for to in edges.get(file).into_iter().flat_map(BTreeMap::keys) {
            if found.insert(*to) {
                open.push(to);
            }
        }
    }
    found
}

pub fn is_test(name: &str) -> bool {
    name.ends_with("tests.rs") || name.contains("/tests/") || name.ends_with("testing.rs")
}

fn module_of(name: &str) -> Vec<String> {
    let path: Vec<String> = name.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    match path.first().map(String::as_str) {
        Some("lib") => Vec::new(),
        Some("cli") => [vec![BINARY.to_owned()], path].concat(),
        _ => path,
    }
}

impl Module {
    fn read(file: &File) -> Self {
        let tokens = without_tests(&tokens(&file.text));
        let (mut aliases, mut paths) = (BTreeMap::new(), BTreeSet::new());
        let mut at = 0;
        while at < tokens.len() {
            let (before, token) = (at.checked_sub(1).map(|at| tokens[at].as_str()), tokens[at].as_str());
            if token == "use" && tokens.get(at + 1).is_some_and(|next| next != "<") {
                let is_exported = before.is_some_and(|before| before == "pub" || before == ")");
                let end = at + tokens[at..].iter().position(|token| token == ";").unwrap_or(1);
                read_tree(&tokens[at + 1..end], &[], is_exported, &mut aliases);
                at = end;
            } else if is_word(token) && !matches!(before, Some("::" | "." | "mod" | "fn" | "let")) {
                let mut path = vec![token.to_owned()];
                while tokens.get(at + 1).is_some_and(|next| next == "::")
                    && tokens.get(at + 2).is_some_and(|next| is_word(next))
                {
                    path.push(tokens[at + 2].clone());
                    at += 2;
                }
                paths.insert(path);
            }
            at += 1;
        }
        Self { file: file.name.clone(), aliases, paths }
    }
}

/// Reads what stands between `use` and `;`.
fn read_tree(tokens: &[String], prefix: &[String], is_exported: bool, aliases: &mut BTreeMap<String, Alias>) {
    let mut path = prefix.to_vec();
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at].as_str() {
            "::" => {}
            "{" => {
                for part in parts(&tokens[at + 1..tokens.len() - 1]) {
                    read_tree(part, &path, is_exported, aliases);
                }
                return;
            }
            "as" => {
                if let Some(name) = tokens.get(at + 1).filter(|name| *name != "_") {
                    aliases.insert(name.clone(), Alias { path, is_exported });
                }
                return;
            }
            "self" if !path.is_empty() => {}
            word => path.push(word.to_owned()),
        }
        at += 1;
    }
    if let Some(name) = path.last().cloned() {
        aliases.insert(name, Alias { path, is_exported });
    }
}

/// The parts of a list, at its commas.
fn parts(list: &[String]) -> Vec<&[String]> {
    let mut depth = 0;
    let is_comma = |token: &String| {
        depth += i32::from(token == "{") - i32::from(token == "}");
        depth == 0 && token == ","
    };
    list.split(is_comma).filter(|part| !part.is_empty()).collect()
}

/// Drops each item under `#[cfg(test)]`.
fn without_tests(tokens: &[String]) -> Vec<String> {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let (mut kept, mut rest) = (Vec::new(), tokens);
    while let Some(token) = rest.first() {
        if !rest.iter().take(MARK.len()).eq(MARK) {
            kept.push(token.clone());
            rest = &rest[1..];
            continue;
        }
        rest = &rest[MARK.len()..];
        let mut depth = 0;
        let is_end = |token: &String| {
            depth += i32::from(token == "{") - i32::from(token == "}");
            depth == 0 && (token == ";" || token == "}")
        };
        let end = rest.iter().position(is_end).map_or(rest.len(), |end| end + 1);
        rest = &rest[end..];
    }
    kept
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Words, `::` and single characters, without comments and the content of strings.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if let Some(raw) = ["r\"", "r#\"", "br\"", "br#\""].iter().find(|raw| rest.starts_with(**raw))
        {
            let end = if raw.contains('#') { "\"#" } else { "\"" };
            raw.len() + rest[raw.len()..].find(end).map_or(rest.len() - raw.len(), |at| at + end.len())
        } else if first == '"' {
            string_length(rest)
        } else if first == '\'' {
            char_length(rest)
        } else if is_word(rest) {
            let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            tokens.push(rest[..length].to_owned());
            length
        } else if rest.starts_with("::") {
            tokens.push("::".to_owned());
            2
        } else {
            if !first.is_whitespace() {
                tokens.push(first.to_string());
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// A character, or the tick of a lifetime.
fn char_length(text: &str) -> usize {
    let escaped = text.starts_with("'\\");
    let begin = if escaped { 3 } else { 1 };
    let length = text.chars().nth(1).map_or(0, char::len_utf8);
    match text.get(begin..).and_then(|rest| rest.find('\'')) {
        Some(at) if escaped => begin + at + 1,
        Some(at) if at == length => begin + at + 1,
        _ => 1,
    }
}

mod tests {
    use super::*;

    fn read(files: &[(&str, &str)]) -> Imports {
        let files = [("lib.rs", ""), ("main.rs", "")].iter().chain(files);
        let files = files.map(|(name, text)| File { name: (*name).into(), text: (*text).into() });
        Imports::read(&files.collect::<Vec<_>>())
    }

    fn edges(files: &[(&str, &str)]) -> Vec<String> {
        let imports = read(files);
        let edges = imports.edges();
        edges.iter().flat_map(|(file, to)| to.keys().map(move |to| format!("{file} {to}"))).collect()
    }

    const FACADE: (&str, &str) =
        ("a.rs", "mod b;\nmod c;\npub use self::b::B;\npub use self::c::{self as d, C as E};\npub struct A;");
    const B: (&str, &str) = ("a/b.rs", "pub struct B;");
    const C: (&str, &str) = ("a/c.rs", "pub struct C; pub fn new() {}");

    #[test]
    fn names_are_resolved_to_the_files_that_define_them() {
        for (text, expected) in [
            ("use crate::a::A;", &["x.rs a.rs"][..]),
            ("use crate::a::B;", &["x.rs a/b.rs"]),
            ("use crate::a::{E, B};", &["x.rs a/b.rs", "x.rs a/c.rs"]),
            ("use crate::{a::{self, b}};\nfn x() { b::B; a::A }", &["x.rs a.rs", "x.rs a/b.rs"]),
            ("use crate::a::d::new as make;", &["x.rs a/c.rs"]),
            ("fn x() { crate::a::c::new(); super::a::B }", &["x.rs a/b.rs", "x.rs a/c.rs"]),
            // Modules alone, other crates, and names that are only passed on.
            ("use crate::a; use crate::a::c; use std::io;", &[]),
            ("pub use crate::a::A;", &[]),
            ("pub(crate) use crate::a::A;\nfn x(_: A) {}", &["x.rs a.rs"]),
            // Comments, strings and tests.
            (
                "// crate::a::A\nconst X: &str = \"\\\"crate::a::A\"; const Y: char = '\"'; const Z: &str = r#\"crate::a::A\"#;",
                &[],
            ),
            (
                "#[cfg(test)]\nmod tests { use crate::a::A; }\n#[cfg(test)]\nuse crate::a::B;\nfn x<'a>(_: crate::a::E) {}",
                &["x.rs a/c.rs"],
            ),
        ] {
            assert_eq!(edges(&[FACADE, B, C, ("x.rs", text)]), expected, "{text}");
        }
        assert_eq!(edges(&[("cli/run.rs", "use railgate::a::B;"), B, FACADE]), ["cli/run.rs a/b.rs"]);
        assert_eq!(
            edges(&[("cli.rs", "pub fn x() {}"), ("cli/run.rs", "crate::cli::x()")]),
            ["cli/run.rs cli.rs"]
        );
        assert_eq!(edges(&[("x/tests.rs", "use crate::a::B;"), B, FACADE]), Vec::<String>::new());
    }

    #[test]
    fn circles_are_found_through_facades_and_over_several_files() {
        let circles = |b: &str, c: &str| -> Vec<Vec<String>> {
            let imports = read(&[FACADE, ("a/b.rs", b), ("a/c.rs", c), ("x.rs", "use crate::a::B;")]);
            imports.circles().iter().map(|circle| circle.keys().map(ToString::to_string).collect()).collect()
        };
        assert_eq!(circles("use super::E; pub struct B;", "pub struct C;"), Vec::<Vec<String>>::new());
        assert_eq!(
            circles("use super::E; pub struct B;", "use crate::a::B; pub struct C;"),
            [["a/b.rs", "a/c.rs"]]
        );
        let three = circles("use super::E; pub struct B;", "use crate::x::x; pub struct C;");
        assert_eq!(three, [["a/b.rs", "a/c.rs", "x.rs"]]);
        assert_eq!(circles("fn f() { crate::x::x() }", ""), [["a/b.rs", "x.rs"]]);
    }
}

//! The floor plan: which room of `libs` may use which, and what decisions must do without; and that no test that needs a server is left
//! out everywhere. One crate cannot be kept in order by its compiler.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Each room and the rooms it may use, from the ground up. Arrows point down only.
const FLOOR_PLAN: &[(&str, &[&str])] = &[
    ("time", &[]),
    ("told", &[]),
    ("refusal", &[]),
    ("money", &["refusal"]),
    ("items", &["refusal"]),
    ("address", &["refusal"]),
    ("breaker", &[]),
    ("telemetry", &[]),
    ("journal", &["refusal", "told"]),
    ("rpc", &["refusal", "told", "breaker", "telemetry"]),
    ("cqrs", &["refusal", "time", "journal", "rpc", "telemetry"]),
    // Operators see sagas by a view and steer them by commands, made as every service's are. Nothing goes back.
    ("saga", &["refusal", "time", "told", "journal", "rpc", "breaker", "telemetry", "cqrs"]),
    ("testing", &["refusal", "time", "journal", "rpc", "cqrs"]),
    ("cli", &["breaker", "rpc", "telemetry", "service"]),
    ("service", &["refusal", "told", "journal", "rpc", "telemetry", "cqrs", "breaker", "cli"]),
];

/// Parts of rooms that must do without a crate, as a reader may want them alone.
const WITHOUT: &[(&str, &[&str])] = &[
    ("breaker/core", &["tonic", "http", "proto", "crate::rpc"]),
    ("breaker/window", &["tonic", "http", "proto", "crate::rpc"]),
    ("saga/machine", &["tonic", "tokio", "rusqlite", "sqlx", "crate::journal", "crate::cqrs"]),
    ("saga/definition.rs", &["tokio", "rusqlite", "sqlx", "crate::cqrs"]),
    ("cqrs/decider.rs", &["tonic", "tokio", "rusqlite", "sqlx"]),
];

/// What a service's decisions never say: they don't wait, ask for the time, or reach for anything. Nor do they speak gRPC.
const NOT_IN_A_DOMAIN: &[&str] = &[
    "async ",
    ".await",
    "tokio::",
    "tonic::",
    "sqlx::",
    "rusqlite::",
    "rand::",
    "sleep(",
    "::now(",
    "now_v7(",
    "new_v4(",
];

/// Where a service answers queries.
const QUERIES: &[&str] = &["queries.rs", "neighbours.rs", "standing.rs"];

/// What queries never say: what commands write is not theirs to read.
const NOT_IN_A_QUERY: &[&str] = &["Journal", "CommandSide", "Coordinator", "Log::", "rusqlite::", "sqlx::"];

/// What of the standard library reaches outside, or waits.
const OUTSIDE: &[&str] = &["env", "fs", "io", "net", "process", "thread"];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every Rust file below a folder, or the file itself.
fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).expect("a folder").map(|entry| entry.expect("an entry").path());
    let rust = |path: &PathBuf| path.is_dir() || path.extension().is_some_and(|extension| extension == "rs");
    entries.filter(rust).flat_map(|path| files(&path)).collect()
}

/// What a file says to the compiler, apart from its tests: those may use any room.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).expect("text");
    let tests = ["#[cfg(test)]\nmod tests", "#[cfg(test)]\npub(super) mod tests"];
    let text = tests.iter().fold(&*text, |text, tests| text.split(tests).next().unwrap_or_default());
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The names right after `crate::`, those in braces too.
fn rooms_used(code: &str) -> BTreeSet<String> {
    names_after("crate::", code)
}

/// The names right after `root`, those in braces too.
fn names_after(root: &str, code: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for (at, found) in code.match_indices(root) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '$')) {
            continue;
        }
        let rest = &code[at + found.len()..];
        match rest.strip_prefix('{') {
            Some(group) => used.extend(first_names(group)),
            None => used.extend(first_name(rest)),
        }
    }
    used
}

/// The first name of each part of a brace group: `a::b, c::{d, e}` names `a` and `c`.
fn first_names(group: &str) -> Vec<String> {
    let (mut depth, mut start, mut names) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            ',' | '}' if depth == 0 => {
                names.extend(first_name(group[start..at].trim_start()));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    names
}

fn first_name(path: &str) -> Option<String> {
    let name: String = path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

fn rooms() -> BTreeMap<String, PathBuf> {
    let entries = fs::read_dir(source()).expect("src").map(|entry| entry.expect("an entry").path());
    let named = entries.filter_map(|path| Some((path.file_stem()?.to_str()?.to_owned(), path)));
    named.filter(|(name, _)| name != "lib").collect()
}

#[test]
fn rooms_open_only_the_doors_they_may() {
    let plan: BTreeMap<&str, &[&str]> = FLOOR_PLAN.iter().copied().collect();
    for (room, path) in rooms() {
        let Some(allowed) = plan.get(&*room) else {
            panic!("`{room}` has no place in the floor plan: give it one in {}", file!());
        };
        for file in files(&path) {
            for used in rooms_used(&code(&file)) {
                let may = used == room || allowed.contains(&&*used) || !plan.contains_key(&*used);
                assert!(may, "{}: `{room}` must not use `{used}`", file.display());
            }
        }
    }
}

#[test]
fn what_can_be_read_alone_needs_nothing_else() {
    for (part, strangers) in WITHOUT {
        for file in files(&source().join(part)) {
            let code = code(&file);
            for stranger in *strangers {
                if let Some(room) = stranger.strip_prefix("crate::") {
                    assert!(!rooms_used(&code).contains(room), "{}: uses `{room}`", file.display());
                    continue;
                }
                let path = format!("{stranger}::");
                let used = code.match_indices(&path).any(|(at, _)| {
                    let before = code[..at].chars().next_back();
                    before.is_none_or(|c| !c.is_alphanumeric() && !matches!(c, '_' | ':'))
                });
                assert!(!used, "{}: uses {stranger}", file.display());
            }
        }
    }
}

#[test]
fn no_decision_waits() {
    let services = Path::new(env!("CARGO_MANIFEST_DIR")).join("../services");
    let entries = fs::read_dir(services).expect("services").map(|entry| entry.expect("an entry").path());
    let domains: Vec<_> = entries.map(|service| service.join("src/domain")).filter(|domain| domain.is_dir()).collect();
    assert!(!domains.is_empty(), "services have domains");
    for file in domains.iter().flat_map(|domain| files(domain)) {
        let code = code(&file);
        for said in NOT_IN_A_DOMAIN {
            assert!(!code.contains(said), "{}: says {said:?}", file.display());
        }
        for used in names_after("std::", &code) {
            assert!(!OUTSIDE.contains(&&*used), "{}: uses std::{used}", file.display());
        }
    }
}

#[test]
fn no_query_is_handed_what_commands_write() {
    let services = Path::new(env!("CARGO_MANIFEST_DIR")).join("../services");
    let entries = fs::read_dir(services).expect("services").map(|entry| entry.expect("an entry").path());
    let places = entries.flat_map(|service| QUERIES.iter().map(move |name| service.join("src").join(name)));
    let there: Vec<_> = places.filter(|place| place.is_file()).collect();
    for name in QUERIES {
        assert!(there.iter().any(|place| place.ends_with(name)), "no service has a {name}: take it out of QUERIES");
    }
    for file in there {
        let code = code(&file);
        for said in NOT_IN_A_QUERY {
            assert!(!code.contains(said), "{}: says {said:?}", file.display());
        }
    }
}

#[test]
fn a_part_of_a_room_looks_up_only_to_its_own() {
    // `super::super::…` past the room's door would get round the plan unseen.
    for (room, path) in rooms() {
        for file in files(&path) {
            let depth = file.strip_prefix(source()).expect("below src").components().count();
            let deepest = (1..8).take_while(|n| code(&file).contains(&"super::".repeat(*n))).count();
            let above = depth - usize::from(file.ends_with("mod.rs"));
            assert!(deepest < above, "{}: looks out of `{room}`", file.display());
        }
    }
}

#[test]
fn a_test_that_needs_a_server_is_run_on_one() {
    // Elsewhere it is left out, and nobody would notice.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let suite = fs::read_to_string(root.join("tests/on_postgres.sh")).expect("the suite");
    let said = ["has_server(", "Schema::new(", "Postgres::", "Pair::start(", "database::location(", "TEST_POSTGRES"];
    let mut needy = 0;
    for (package, folder) in [("libs", "libs/tests"), ("tests", "tests/tests")] {
        let run = suite.lines().filter(|line| line.contains(&format!("--package {package} ")));
        let run: BTreeSet<_> = run.flat_map(|line| line.split("--test ").skip(1)).map(str::trim_end).collect();
        for file in files(&root.join(folder)).iter().filter(|file| file.parent() == Some(&root.join(folder))) {
            let (code, name) = (code(file), file.file_stem().and_then(|name| name.to_str()).expect("a name"));
            // What `tokens` tries doesn't come about on a server.
            if !["house", "tokens"].contains(&name) && said.iter().any(|said| code.contains(said)) {
                needy += 1;
                assert!(run.contains(name), "{}: is not among those of tests/on_postgres.sh", file.display());
            }
        }
    }
    assert!(needy > 0, "some need one");
}

#[test]
fn names_in_braces_are_seen() {
    let code = "use crate::{\n    a::{b, c},\n    d,\n};\nlet x = crate::e::f(); use $crate::g; mycrate::h();";
    assert_eq!(rooms_used(code).into_iter().collect::<Vec<_>>(), ["a", "d", "e"]);
}

//! The mutants of `tests/mutants`: each still finds the code that it breaks, and its test, and is in ARCHITECTURE.md's table. Whether they
//! are caught is what `./just mutants` tries.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A patch, and what it says of itself above.
struct Mutant {
    name: String,
    text: String,
}

/// Where the code of `libs` is that no service runs.
const NOT_SHIPPED: [&str; 3] = ["/simulation/", "/exploration/", "/tests/"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn mutants() -> Vec<Mutant> {
    let entries = fs::read_dir(root().join("tests/mutants")).expect("the mutants");
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"));
    let mutant = |file: String| {
        let name = file.strip_suffix(".patch").unwrap_or_else(|| panic!("{file}: is no patch")).to_owned();
        Mutant { name, text: read(&format!("tests/mutants/{file}")) }
    };
    names.map(mutant).collect()
}

impl Mutant {
    fn says(&self, field: &str) -> &str {
        let line = self.text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(": "));
        line.unwrap_or_else(|| panic!("{}: has no {field}", self.name))
    }

    /// Where its test is, in the library or in a file of `libs/tests`, and its name there.
    fn test(&self) -> (&str, &str) {
        self.says("Test")
            .split_once(' ')
            .unwrap_or_else(|| panic!("{}: says where its test is, and its name", self.name))
    }

    /// The one file that it changes.
    fn file(&self) -> &str {
        let files: Vec<_> = self.text.lines().filter_map(|line| line.strip_prefix("+++ b/")).collect();
        let [file] = files[..] else { panic!("{}: changes {files:?}", self.name) };
        file
    }

    /// Each place that it changes, as it is before and after.
    fn places(&self) -> Vec<[String; 2]> {
        let places = self.text.split("\n@@ ").skip(1);
        let lines = |place: &str, mark: char| {
            let lines = place.lines().skip(1).filter(|line| line.is_empty() || line.starts_with([' ', mark]));
            lines.map(|line| format!("{}\n", line.get(1..).unwrap_or_default())).collect()
        };
        places.map(|place| [lines(place, '-'), lines(place, '+')]).collect()
    }
}

#[test]
fn every_mutant_finds_what_it_breaks() {
    for mutant in mutants() {
        let (name, file) = (&mutant.name, mutant.file());
        let ships = file.starts_with("libs/src/") && !NOT_SHIPPED.iter().any(|part| file.contains(part));
        assert!(ships, "{name}: breaks nothing that ships: {file}");
        let (code, places) = (read(file), mutant.places());
        assert!(!places.is_empty(), "{name}: changes nothing");
        for [before, after] in places {
            assert_ne!(before, after, "{name}: changes nothing");
            let found = code.matches(&before).count();
            assert_eq!(found, 1, "{name}: {file} has this so often; make its patch anew:\n{before}");
        }
    }
}

#[test]
fn every_mutant_has_a_test() {
    for mutant in mutants() {
        let (name, (binary, test)) = (&mutant.name, mutant.test());
        let (modules, function) = test.rsplit_once("::").unwrap_or(("", test));
        let file = match binary {
            "lib" => {
                let module = modules.strip_suffix("::tests").unwrap_or(modules).replace("::", "/");
                let file = format!("libs/src/{module}.rs");
                if root().join(&file).exists() { file } else { format!("libs/src/{module}/mod.rs") }
            }
            binary => format!("libs/tests/{binary}.rs"),
        };
        assert!(read(&file).contains(&format!("fn {function}(")), "{name}: there is no {function} in {file}");
    }
}

#[test]
fn the_table_is_that_of_the_mutants() {
    let map = read("ARCHITECTURE.md");
    let rows = map.lines().skip_while(|line| !line.starts_with("| mutant |")).skip(2);
    let mut told: Vec<_> = rows.take_while(|line| line.starts_with('|')).map(str::to_lowercase).collect();
    let row = |mutant: &Mutant| {
        let what = mutant.text.lines().next().unwrap_or_default().trim_end_matches('.');
        let file = mutant.file().strip_prefix("libs/src/").unwrap_or_default();
        let test = mutant.test().1.rsplit("::").next().unwrap_or_default();
        format!("| `{}` | {what} | `{file}` | `{test}` | {} |", mutant.name, mutant.says("Says")).to_lowercase()
    };
    let mut tried: Vec<_> = mutants().iter().map(row).collect();
    told.sort();
    tried.sort();
    assert_eq!(told, tried);
}

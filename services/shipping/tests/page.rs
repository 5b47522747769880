//! `docs/cqrs.md` shows what the build makes of a command, and what the service writes: it is what the build makes, and what is written.

/// Without what the page leaves out, and without white space.
fn bare(code: &str) -> String {
    let paths = ["proto::shipping::v1::", "libs::cqrs::", "libs::refusal::", "libs::journal::"];
    let code = paths.iter().fold(code.to_owned(), |code, path| code.replace(path, ""));
    code.split_whitespace().collect()
}

#[test]
fn the_page_shows_the_trait_that_is_generated() {
    let page = include_str!("../../../docs/cqrs.md");
    let generated = include_str!(concat!(env!("OUT_DIR"), "/shipping.v1.surface.rs"));
    let (_, shown) = page.split_once("pub trait ShippingDecider: Send + Sync + 'static {").unwrap();
    let (shown, _) = shown.split_once("\n}\n").unwrap();
    assert!(shown.contains("fn cancel_shipment("));
    assert!(
        bare(generated).contains(&(bare(shown) + "}")),
        "docs/cqrs.md shows another trait than the build makes:\n{shown}"
    );
}

#[test]
fn the_page_shows_what_is_written_here() {
    let page = include_str!("../../../docs/cqrs.md");
    let (_, section) = page.split_once("\n## What you write\n").expect("a section");
    let (section, _) = section.split_once("\n## ").expect("another section after it");
    let mut shown = 0;
    for block in section.split("```rust,ignore\n").skip(1) {
        let (code, _) = block.split_once("```").expect("an end");
        let (file, code) = code.split_once('\n').expect("the file's name, then code");
        let written = match file {
            "// src/domain/shipment.rs" => include_str!("../src/domain/shipment.rs"),
            "// src/projections/shipments.rs" => include_str!("../src/projections/shipments.rs"),
            other => panic!("docs/cqrs.md shows code of {other}, which nobody compares"),
        };
        for part in code.split("// …\n") {
            assert!(bare(written).contains(&bare(part)), "docs/cqrs.md shows what is not in {file}:\n{part}");
            shown += 1;
        }
    }
    assert!(shown >= 3, "an evolve, a decision and a fold");
}

//! `docs/cqrs.md` shows what the build makes of a command: it is what the build makes.

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

//! What a contract must declare, and how a wrong one is told: by file and line.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;

use codegen::{Contracts, Error};
use tempfile::TempDir;

/// Generates from a package `toy.v1` whose command service has this body, which begins in line 8.
fn generate(body: &str) -> Result<String, Error> {
    let folder = TempDir::new().unwrap();
    let contracts = folder.path().join("contracts");
    for package in ["libs/v1", "toy/v1"] {
        fs::create_dir_all(contracts.join(package)).unwrap();
    }
    fs::copy("../../proto/libs/v1/options.proto", contracts.join("libs/v1/options.proto")).unwrap();
    let contract = format!(
        "syntax = \"proto3\";\npackage toy.v1;\nimport \"libs/v1/options.proto\";\n\
         message Part {{ string id = 1; }}\n\
         message MoveRequest {{ string request_id = 1; string toy_id = 2; repeated Part parts = 3; int32 count = 4; }}\n\
         message MoveResponse {{}}\nservice ToyCommandService {{\n{body}\n}}\n"
    );
    fs::write(contracts.join("toy/v1/toy.proto"), contract).unwrap();
    let contracts = Contracts::load(contracts)?.surfaces("toy.v1")?.steps("toy.v1")?;
    Ok(contracts.generated().iter().map(|(_, text)| text.as_str()).collect())
}

/// The line and the words of the error.
fn refused(body: &str) -> (i32, String) {
    match generate(body) {
        Err(error) => {
            // As a build script prints it.
            let said = format!("{error:?}");
            let Error::Declaration { file, line, what } = error else { panic!("{said}") };
            assert_eq!(said, format!("contracts/toy/v1/toy.proto:{line}: {what}"));
            assert_eq!(file, "contracts/toy/v1/toy.proto");
            (line, what)
        }
        other => panic!("{other:?}"),
    }
}

const RIGHT: &str = "rpc Move(MoveRequest) returns (MoveResponse) {
  option idempotency_level = IDEMPOTENT;
  option (libs.v1.command) = { aggregates: [{kind: \"toy\", field: \"toy_id\"}, {kind: \"part\", field: \"parts.id\"}] };
}";

#[test]
fn a_right_declaration_becomes_a_surface_and_a_step() {
    let text = generate(RIGHT).unwrap();
    for expected in [
        "pub trait ToyDecider",
        "self.decider.beside_move(&request)",
        "AggregateId::new(\"toy\", request.toy_id.as_str())",
        "for part0 in &request.parts",
    ] {
        assert!(text.contains(expected), "{expected} in\n{text}");
    }
    assert!(text.contains("const PATH: &'static str = \"/toy.v1.ToyCommandService/Move\""), "{text}");
}

#[test]
fn a_command_without_its_level_is_refused() {
    let (line, what) = refused("// A comment.\nrpc Move(MoveRequest) returns (MoveResponse);");
    assert_eq!((line, what.as_str()), (9, "Move: a command says `option idempotency_level = IDEMPOTENT`"));
}

#[test]
fn a_command_without_options_is_refused() {
    let (line, what) =
        refused("rpc Move(MoveRequest) returns (MoveResponse) { option idempotency_level = IDEMPOTENT; }");
    assert_eq!(line, 8);
    assert!(what.contains("option (libs.v1.command)"), "{what}");
}

#[test]
fn a_command_without_a_request_id_is_refused() {
    for fields in ["string toy_id = 1;", "string toy_id = 1; int64 request_id = 2;", "repeated string request_id = 1;"]
    {
        let bare = format!("}}\nmessage BareRequest {{ {fields} }}\nservice BareCommandService {{\n{RIGHT}");
        let (line, what) = refused(&bare.replace("Move(MoveRequest)", "Move(BareRequest)"));
        let expected = "Move: BareRequest has no `string request_id`: a command is keyed by it";
        assert_eq!((line, what.as_str()), (11, expected), "{fields}");
    }
}

#[test]
fn a_compensation_of_nothing_is_refused() {
    let (line, what) = refused(&RIGHT.replace("aggregates:", "compensates: \"Fly\" aggregates:"));
    assert_eq!((line, what.as_str()), (8, "Move: Move compensates Fly, which ToyCommandService doesn't have"));
}

#[test]
fn a_field_that_is_not_there_or_not_an_id_is_refused() {
    let (_, what) = refused(&RIGHT.replace("parts.id", "parts.name"));
    assert_eq!(what, "Move: Part has no field `name` (in `parts.name`)");
    let (_, what) = refused(&RIGHT.replace("parts.id", "count"));
    assert_eq!(what, "Move: `count` is not a string: ids are");
}

#[test]
fn a_query_that_may_have_effects_is_refused() {
    let body = "}\nservice ToyQueryService {\nrpc Get(MoveRequest) returns (MoveResponse);";
    let (line, what) = refused(body);
    assert_eq!((line, what.as_str()), (10, "Get: a query says `option idempotency_level = NO_SIDE_EFFECTS`"));
}

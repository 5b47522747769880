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
        "syntax = \"proto3\";\npackage toy.v1;\nimport \"libs/v1/options.proto\"; import \"google/protobuf/descriptor.proto\"; \
         import \"google/protobuf/wrappers.proto\"; import \"google/protobuf/field_mask.proto\";\n\
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
        "match self.decider.beside_move(&request)",
        "Err(refusal) => accepted.refuse(refusal)",
        "MoveRequest::default();",
        "fn r#move(",
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

/// The right one, by another name and with more options.
fn method(name: &str, options: &str) -> String {
    let more = RIGHT.replace("rpc Move", &format!("rpc {name}"));
    more.replace("aggregates: [{kind: \"toy\"", &format!("{options} aggregates: [{{kind: \"toy\""))
}

#[test]
fn a_compensation_that_another_one_takes_the_place_of_stays_one() {
    let undo = |name: &str| method(name, "compensates: \"Move\"");
    let deprecated = |name: &str| undo(name).replace("option idem", "option deprecated = true;\n  option idem");
    let pair = |undo: &str| format!("impl libs::saga::Compensated for Move {{\n    type Compensation = {undo};\n}}");
    for all in [
        [RIGHT, &deprecated("Back"), &deprecated("Expire"), &undo("Reverse")],
        [&undo("Reverse"), &deprecated("Back"), RIGHT, &deprecated("Expire")],
    ] {
        let text = generate(&all.join("\n")).unwrap();
        assert!(text.contains(&pair("Reverse")), "{text}");
        assert_eq!(text.matches("libs::saga::Compensated for").count(), 1);
        assert_eq!(text.matches("compensates: true").count(), 3, "whoever goes on calling the old ones has them undo");
    }
    // Until another one is there it is the one.
    assert!(generate(&[RIGHT, &deprecated("Back")].join("\n")).unwrap().contains(&pair("Back")));
    let (line, what) = refused(&[RIGHT, &deprecated("Back"), &deprecated("Expire")].join("\n"));
    assert_eq!((line, what.as_str()), (17, "Expire: Expire compensates Move, which Back does already"));
}

#[test]
fn a_pair_that_is_none_is_refused() {
    let (line, what) = refused(&method("Move", "compensates: \"Move\""));
    assert_eq!((line, what.as_str()), (8, "Move: Move compensates itself: done twice is not undone"));
    let two = [RIGHT, &method("Back", "compensates: \"Move\""), &method("Expire", "compensates: \"Move\"")].join("\n");
    let (line, what) = refused(&two);
    assert_eq!((line, what.as_str()), (16, "Expire: Expire compensates Move, which Back does already"));
    let by_hand = "rpc Fly(MoveRequest) returns (MoveResponse) {
  option idempotency_level = IDEMPOTENT;
  option (libs.v1.command) = { by_hand: true };
}";
    let said = "Back: Back compensates Fly: neither of a pair can be `by_hand`";
    assert_eq!(refused(&format!("{by_hand}\n{}", method("Back", "compensates: \"Fly\""))), (12, said.to_owned()));
    let undo = by_hand.replace("by_hand:", "compensates: \"Move\" by_hand:");
    let said = "Fly: Fly compensates Move: neither of a pair can be `by_hand`";
    assert_eq!(refused(&format!("{RIGHT}\n{undo}")), (12, said.to_owned()));
}

#[test]
fn names_that_would_be_generated_twice_are_refused() {
    let two = format!("{RIGHT}\n{}", RIGHT.replace("rpc Move", "rpc PrepareMove"));
    let said = "PrepareMove: the function `prepare_move` would be generated for Move, too: take another name";
    assert_eq!(refused(&two), (12, said.to_owned()));
    let two = format!("{RIGHT}\n}}\nservice CarCommandService {{\n{RIGHT}");
    let said = "Move: ToyCommandService has one, too, and a saga's step is named by its method alone";
    assert_eq!(refused(&two), (14, said.to_owned()));
}

#[test]
fn a_kind_that_is_none_or_taken_is_refused() {
    for (kind, said) in [
        ("Toy", "Move: the kind \"Toy\" must be of a-z, 0-9 and '_'"),
        ("saga", "Move: the kind saga is taken: sagas are kept under it"),
        ("saga_owner", "Move: the kind saga_owner is taken: sagas are kept under it"),
    ] {
        assert_eq!(refused(&RIGHT.replace("\"toy\"", &format!("\"{kind}\""))), (8, said.to_owned()));
    }
}

#[test]
fn an_id_that_may_be_absent_is_refused() {
    let with = |fields: &str, field: &str| {
        let own = format!("string request_id = 1; {fields}");
        let own = format!("}}\nmessage OwnRequest {{ {own} }}\nservice OwnCommandService {{\n{RIGHT}");
        refused(
            &own.replace("Move(MoveRequest)", "Move(OwnRequest)")
                .replace("toy_id", field)
                .replace(", {kind: \"part\", field: \"parts.id\"}", ""),
        )
    };
    let optional = (11, "Move: `toy` is optional: an id always is there".to_owned());
    assert_eq!(with("optional string toy = 2;", "toy"), optional);
    let map = "Move: `toys` in `toys.key` is in a map or a oneof: an id always has its place".to_owned();
    assert_eq!(with("map<string, Part> toys = 2;", "toys.key"), (11, map));
    let oneof = "Move: `toy` in `toy` is in a map or a oneof: an id always has its place".to_owned();
    assert_eq!(with("oneof what { string toy = 2; Part part = 3; }", "toy"), (11, oneof));
    let bare = "Move: OwnRequest has no `string request_id`: a command is keyed by it".to_owned();
    let own = format!(
        "}}\nmessage OwnRequest {{ optional string request_id = 1; string toy_id = 2; }}\nservice OwnCommandService {{\n{RIGHT}"
    );
    assert_eq!(refused(&own.replace("Move(MoveRequest)", "Move(OwnRequest)")), (11, bare));
}

#[test]
fn a_field_that_is_not_there_or_not_an_id_is_refused() {
    let (_, what) = refused(&RIGHT.replace("parts.id", "parts.name"));
    assert_eq!(what, "Move: Part has no field `name` (in `parts.name`)");
    let (_, what) = refused(&RIGHT.replace("parts.id", "count"));
    assert_eq!(what, "Move: `count` is not a string: ids are");
}

#[test]
fn an_id_within_one_of_googles_messages_is_refused() {
    for (kind, field) in [("StringValue", "owner.value"), ("FieldMask", "owner.paths")] {
        let own = format!("string request_id = 1; google.protobuf.{kind} owner = 2; repeated Part parts = 3;");
        let own = format!("}}\nmessage OwnRequest {{ {own} }}\nservice OwnCommandService {{\n{RIGHT}");
        let said = format!("Move: `owner` in `{field}` is a google.protobuf.{kind}: an id is in a message of yours");
        let own = own.replace("Move(MoveRequest)", "Move(OwnRequest)").replace("toy_id", field);
        assert_eq!(refused(&own), (11, said));
    }
}

#[test]
fn a_package_without_services_is_told_from_one_that_is_not_there() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("loyalty.proto"), "syntax = \"proto3\";\npackage loyalty.v1;\nmessage Points {}\n")
        .unwrap();
    let said = |package: &str| Contracts::load(folder.path()).unwrap().surfaces(package).unwrap_err().to_string();
    assert_eq!(
        said("loyalty.v1"),
        "package loyalty.v1 has no service whose name ends in CommandService or QueryService"
    );
    assert_eq!(said("loyalty"), "no package loyalty in the contracts");
}

#[test]
fn a_query_that_may_have_effects_is_refused() {
    let body = "}\nservice ToyQueryService {\nrpc Get(MoveRequest) returns (MoveResponse);";
    let (line, what) = refused(body);
    assert_eq!((line, what.as_str()), (10, "Get: a query says `option idempotency_level = NO_SIDE_EFFECTS`"));
}

#[test]
fn a_query_that_says_what_commands_say_is_refused() {
    let query = RIGHT.replace("IDEMPOTENT", "NO_SIDE_EFFECTS");
    let body = format!("}}\nservice ToyQueryService {{\n{query}");
    assert_eq!(refused(&body), (10, "Move: a query has no `option (libs.v1.command)`".to_owned()));
}

#[test]
fn a_message_of_googles_own_is_refused_where_prost_makes_none() {
    let body = RIGHT.replace("returns (MoveResponse)", "returns (google.protobuf.MethodOptions)");
    let said = "Move: google.protobuf.MethodOptions is not a message of yours: give it one that holds it";
    assert_eq!(refused(&body), (8, said.to_owned()));
}

#[test]
fn the_page_quotes_what_the_build_says() {
    let page = include_str!("../../../docs/cqrs.md");
    let level = "  option idempotency_level = IDEMPOTENT;\n";
    let query = "}\nservice ToyQueryService {\nrpc Get(MoveRequest) returns (MoveResponse);";
    let bare = format!("}}\nmessage BareRequest {{ string toy_id = 1; }}\nservice BareCommandService {{\n{RIGHT}");
    let undo = RIGHT.replace("aggregates:", "compensates: \"Fly\" aggregates:");
    let undone = [("Move", "ReleaseStock"), ("Fly", "HoldStock"), ("Toy", "Inventory")];
    let nameless =
        format!("rpc Move(MoveRequest) returns (MoveResponse) {{\n{level}option (libs.v1.command) = {{}}; }}");
    for (body, names) in [
        (RIGHT.replace(level, ""), &[("Move", "AddStock")][..]),
        (query.to_owned(), &[("Get", "GetStock")]),
        (undo, &undone),
        (RIGHT.replace("parts.id", "parts.name"), &[("Move", "ReserveStock"), ("Part", "Item"), ("parts", "items")]),
        (nameless, &[("Move", "CancelOrder")]),
        (bare.replace("Move(MoveRequest)", "Move(BareRequest)"), &[("Bare", "AddStock"), ("Move", "AddStock")]),
    ] {
        let (_, what) = refused(&body);
        // The page has the shop's names.
        let said = names.iter().fold(what, |said, (toy, own)| said.replace(toy, own));
        assert!(
            page.contains(&format!("` {said} `")) || page.contains(&format!("`{said}`")),
            "not in docs/cqrs.md: {said}"
        );
    }
}
